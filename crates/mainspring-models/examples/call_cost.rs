//! CPU time of a model call on the client's side, against a server given by its address.
//!
//! `cargo run --release -p mainspring-models --example call_cost -- http://127.0.0.1:PORT/v1 [CALLS]`
//! prints one line of JSON for each way: this crate with and without streaming, and hyper's own
//! client with the same bodies as the floor beneath it. All calls run on one thread, 64 at a time.
//! `--parked N` in place of CALLS holds N calls open at a server that does not answer and prints the
//! memory of each: proportional set size, after a first eighth of them as warm-up.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mainspring_models::{Endpoint, EndpointSet, ModelClient, ModelRequest, TransportLimits};
use mainspring_session::{AgentSpec, Api, CallIndex, Message, ModelSpec};
use mainspring_wire::{CallIds, Codec};

const CONCURRENCY: u64 = 64;

/// CPU time of this thread in nanoseconds.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has schedstat");
    let first = stat.split(' ').next().expect("the first field is there");
    first.parse().expect("the first field is a number")
}

fn codec(base_url: &str, stream: bool) -> Codec {
    let model = serde_json::json!({
        "name": "bench", "base_url": base_url, "tool_mode": "native", "output_mode": "native"
    });
    let agent = serde_json::json!({"name": "bench", "instructions": "Answer.", "models": [model]});
    let agent: AgentSpec = serde_json::from_value(agent).expect("the spec is valid");
    let model: &ModelSpec = &agent.models[0];
    Codec::new(&agent, model, stream).expect("the spec is valid")
}

fn client_and_request(base_url: &str, stream: bool) -> (ModelClient, ModelRequest) {
    let client = ModelClient::new(TransportLimits::default()).expect("limits are valid");
    let endpoint = Endpoint::new(Api::ChatCompletions, base_url, Some("key"), &[])
        .expect("the address is valid");
    let model = ModelSpec { name: "bench".to_owned(), ..ModelSpec::default() };
    let endpoints = EndpointSet::single(&model, endpoint).expect("the model has no limits");
    let codec = Arc::new(codec(base_url, stream));
    let mut history = Vec::new();
    codec.encode_message(&Message::user("hello"), &mut history);
    let (body, ids) = (codec.body(&history).into(), CallIds { first: CallIndex(0) });
    let request = ModelRequest::new(&model, Arc::new(endpoints), codec, body, ids);
    (client, request)
}

async fn ours(base_url: &str, stream: bool, calls: u64) {
    let (client, request) = client_and_request(base_url, stream);
    let name = if stream { "mainspring-models, streaming" } else { "mainspring-models" };
    measure(name, calls, move || {
        let (client, request) = (client.clone(), request.clone());
        async move {
            client.call(request, &mut |_| {}).await.expect("the server answers");
        }
    })
    .await;
}

async fn floor(base_url: &str, calls: u64) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build(connector);
    let uri: hyper::Uri = format!("{base_url}/chat/completions").parse().expect("a valid address");
    let codec = codec(base_url, false);
    let mut history = Vec::new();
    codec.encode_message(&Message::user("hello"), &mut history);
    let body = Bytes::from(codec.body(&history));
    let codec = Arc::new(codec);
    measure("hyper-util", calls, move || {
        let (client, uri, body, codec) = (client.clone(), uri.clone(), body.clone(), codec.clone());
        async move {
            let request = hyper::Request::post(uri)
                .header("content-type", "application/json")
                .body(Full::new(body))
                .expect("a valid request");
            let response = client.request(request).await.expect("the server answers");
            let body = response.into_body().collect().await.expect("a whole body").to_bytes();
            codec.decode(&body, CallIds { first: CallIndex(0) }).expect("a valid answer");
        }
    })
    .await;
}

/// Proportional set size of this process in bytes.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux has smaps_rollup");
    let line = text.lines().find(|line| line.starts_with("Pss:")).expect("the line is there");
    let kib = line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("the line holds a number") * 1024
}

/// Calls that the server has not answered yet.
async fn parked(base_url: &str, calls: u64) {
    let (client, request) = client_and_request(base_url, false);
    let open = |count: u64| {
        let (client, request) = (client.clone(), request.clone());
        async move {
            for _ in 0..count {
                let (client, request) = (client.clone(), request.clone());
                tokio::task::spawn_local(async move {
                    client.call(request, &mut |_| {}).await.expect("the server answers");
                });
                // A few at a time, so that the server's queue of connections does not overflow.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
    };
    open(calls / 8).await;
    let before = memory_bytes();
    open(calls).await;
    let grown = memory_bytes().saturating_sub(before);
    let future_bytes = size_of_val(&client.call(request.clone(), &mut |_| {}));
    let line = serde_json::json!({
        "way": "mainspring-models, parked",
        "calls": calls,
        "bytes_per_call": grown / calls,
        "future_bytes": future_bytes,
    });
    println!("{line}");
}

async fn measure<F: Future<Output = ()> + 'static>(
    name: &str,
    calls: u64,
    call: impl Fn() -> F + Clone + 'static,
) {
    let round = |calls: u64| {
        let call = call.clone();
        async move {
            let workers = (0..CONCURRENCY).map(|_| {
                let call = call.clone();
                tokio::task::spawn_local(async move {
                    for _ in 0..calls / CONCURRENCY {
                        call().await;
                    }
                })
            });
            for worker in workers.collect::<Vec<_>>() {
                worker.await.expect("no call panics");
            }
        }
    };
    round(calls / 10).await;
    let (cpu, wall) = (cpu_ns(), std::time::Instant::now());
    round(calls).await;
    let (cpu, wall) = ((cpu_ns() - cpu) as f64, wall.elapsed().as_micros() as f64);
    let line = serde_json::json!({
        "way": name,
        "calls": calls,
        "cpu_us_per_call": (cpu / 1000.0 / calls as f64 * 10.0).round() / 10.0,
        "wall_us_per_call": (wall / calls as f64 * 10.0).round() / 10.0,
    });
    println!("{line}");
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(base_url) = arguments.next() else {
        eprintln!("usage: call_cost BASE_URL [CALLS | --parked CALLS]");
        std::process::exit(2);
    };
    let mut next = arguments.next();
    let is_parked = next.as_deref() == Some("--parked");
    if is_parked {
        next = arguments.next();
    }
    let calls = next.and_then(|calls| calls.parse().ok()).unwrap_or(64_000);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        if is_parked {
            return parked(&base_url, calls).await;
        }
        floor(&base_url, calls).await;
        ours(&base_url, false, calls).await;
        ours(&base_url, true, calls).await;
    });
}
