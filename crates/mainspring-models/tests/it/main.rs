//! Model calls against a real socket, with a server that also behaves badly.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod budget;
mod calls;
mod connections;
mod endpoint;
mod failures;
mod proxied;
mod server;
mod shared;

use std::sync::Arc;

use mainspring_models::{
    Endpoint, EndpointSet, ModelClient, ModelReply, ModelRequest, TransportLimits,
};
use mainspring_session::{AgentSpec, Api, CallIndex, Message};
use mainspring_wire::{CallIds, Codec, Delta, HttpFailure};
use serde_json::json;

const KEY: &str = "not-a-real-key";

fn client() -> ModelClient {
    ModelClient::new(TransportLimits::default()).unwrap()
}

/// A request to a server, with deadlines that no test reaches unless it lowers them.
fn request(base_url: &str, stream: bool) -> ModelRequest {
    let model = json!({"name": "m", "base_url": base_url, "tool_mode": "native",
                       "output_mode": "native"});
    let agent = json!({"name": "a", "models": [model]});
    let agent: AgentSpec = serde_json::from_value(agent).unwrap();
    let codec = Codec::new(&agent, &agent.models[0], stream).unwrap();
    let mut history = Vec::new();
    codec.encode_message(&Message::user("hello"), &mut history);
    let model = &agent.models[0];
    let endpoint = Endpoint::new(Api::ChatCompletions, base_url, Some(KEY), &[]).unwrap();
    let endpoints = Arc::new(EndpointSet::single(model, endpoint).unwrap());
    let (body, ids) = (codec.body(&history).into(), CallIds { first: CallIndex(0) });
    ModelRequest {
        connect_ms_max: 60_000,
        first_token_ms_max: 60_000,
        total_ms_max: 60_000,
        ..ModelRequest::new(model, endpoints, Arc::new(codec), body, ids)
    }
}

async fn call(request: ModelRequest) -> Result<ModelReply, HttpFailure> {
    client().call(request, &mut |_| {}).await
}

/// A call with the texts that came as deltas.
async fn call_with_deltas(
    client: &ModelClient,
    request: ModelRequest,
) -> (Result<ModelReply, HttpFailure>, Vec<String>) {
    let mut texts = Vec::new();
    let mut on_delta = |delta: Delta<'_>| match delta {
        Delta::Text(text) => texts.push(text.to_owned()),
        other => panic!("{other:?}"),
    };
    let result = client.call(request, &mut on_delta).await;
    (result, texts)
}
