//! Calls that fail: each with its code, its words and its cure, and never with the key.

use mainspring_models::{ModelClient, TransportLimits};
use mainspring_session::ErrorCode;
use mainspring_wire::{HttpFailure, RETRY_AFTER_MS_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{STREAM_HEAD, Server, Step, answer, chunk, response, text_event};
use crate::{KEY, call, request};

/// The failure of one call to a server that does this.
async fn failure(step: Step, stream: bool) -> HttpFailure {
    let server = Server::start(vec![step]).await;
    call(request(&server.base_url, stream)).await.unwrap_err()
}

/// The message without the port, which differs from run to run.
fn message(failure: &HttpFailure) -> String {
    let text = failure.failure.to_text();
    let Some((before, after)) = text.split_once("127.0.0.1:") else {
        return text;
    };
    format!("{before}HOST{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
}

const SLOW_DOWN: &str = "model \"m\" at HOST answered with status 429: no: [redacted]\n\
    hint: lower the concurrency, or ask the provider for a higher rate";

/// Status and headers of a response; the code, the wait and the text of its failure.
type Refusal = (&'static str, &'static str, ErrorCode, Option<u64>, &'static str);

const REFUSALS: &[Refusal] = &[
    (
        "401 No",
        "",
        ErrorCode::MODEL_AUTH,
        None,
        "model \"m\" at HOST answered with status 401\n\
      hint: check the API key and that it may use this model",
    ),
    (
        "404 Not Found",
        "",
        ErrorCode::MODEL_NOT_FOUND,
        None,
        "model \"m\" at HOST answered with status 404: no: [redacted]\n\
      hint: check the model's name and that base_url ends where the API begins, often in /v1",
    ),
    ("429 Slow", "retry-after: 7\r\n", ErrorCode::MODEL_RATE_LIMITED, Some(7_000), SLOW_DOWN),
    ("429 Slow", "retry-after-ms: 30\r\n", ErrorCode::MODEL_RATE_LIMITED, Some(30), SLOW_DOWN),
    ("429 Slow", "", ErrorCode::MODEL_RATE_LIMITED, None, SLOW_DOWN),
    (
        "500 Oops",
        "",
        ErrorCode::MODEL_SERVER_ERROR,
        None,
        "model \"m\" at HOST answered with status 500: no: [redacted]",
    ),
    (
        "307 Moved",
        "location: http://127.0.0.1:1/\r\n",
        ErrorCode::MODEL_NOT_FOUND,
        None,
        "model \"m\" at HOST answered with status 307: no: [redacted]\n\
      hint: the server redirects: set base_url to the final address",
    ),
];

#[tokio::test]
async fn statuses_become_codes_with_the_wait_that_the_server_asked_for() {
    let told = format!(r#"{{"error":{{"message":"no: {KEY}"}}}}"#);
    for (status, headers, code, wait, text) in REFUSALS {
        for stream in [false, true] {
            let answer = response(status, headers, &told);
            let failure = failure(Step::Answer(vec![answer]), stream).await;
            assert_eq!((&failure.failure.code, &failure.retry_after_ms), (code, wait));
            assert_eq!(message(&failure), *text);
        }
    }
}

#[tokio::test]
async fn a_date_to_retry_after_is_a_wait_from_now() {
    let past = "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let failure = self::failure(Step::Answer(vec![response("503 Busy", past, "")]), false).await;
    assert_eq!(failure.retry_after_ms, Some(0));
    let future = "retry-after: Fri, 31 Dec 2100 23:59:59 GMT\r\n";
    let failure = self::failure(Step::Answer(vec![response("503 Busy", future, "")]), false).await;
    assert_eq!(failure.retry_after_ms, Some(RETRY_AFTER_MS_MAX));
}

#[tokio::test]
async fn a_server_that_hangs_runs_into_the_deadline_that_is_next() {
    let head = STREAM_HEAD.as_bytes().to_vec();
    let begun = [&head[..], &chunk(text_event("x").as_bytes())].concat();
    let silent = [&head[..], &chunk(b": ping\n\n")].concat();
    let half =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{".to_vec();
    for (bytes, stream, first_ms, total_ms, text) in [
        (
            vec![],
            false,
            40,
            60_000,
            "sent no answer within 0.04 s\nhint: raise the model's first_token_s",
        ),
        (
            vec![],
            true,
            40,
            60_000,
            "sent no first token within 0.04 s\nhint: raise the model's first_token_s",
        ),
        (
            silent,
            true,
            40,
            60_000,
            "sent no first token within 0.04 s\nhint: raise the model's first_token_s",
        ),
        (
            vec![],
            true,
            60_000,
            40,
            "did not finish its answer within 0.04 s\nhint: raise the model's total_s",
        ),
        (
            begun,
            true,
            30_000,
            200,
            "did not finish its answer within 0.2 s\nhint: raise the model's total_s",
        ),
        (
            half,
            false,
            30_000,
            200,
            "did not finish its answer within 0.2 s\nhint: raise the model's total_s",
        ),
    ] {
        let mut server = Server::start(vec![Step::Hang(bytes)]).await;
        let mut request = request(&server.base_url, stream);
        request.first_token_ms_max = first_ms;
        request.total_ms_max = total_ms;
        let failure = call(request).await.unwrap_err();
        assert_eq!(failure.failure.code, ErrorCode::MODEL_TIMEOUT);
        assert!(failure.failure.retryable);
        let hint = "or check how busy the server is";
        assert_eq!(message(&failure), format!("model \"m\" at HOST {text}, {hint}"));
        server.connection_gone().await;
    }
}

#[tokio::test]
async fn a_connection_that_ends_early_was_interrupted() {
    let whole = answer("x");
    let begun = [STREAM_HEAD.as_bytes(), &chunk(text_event("x").as_bytes())].concat();
    let ended = [&begun[..], b"0\r\n\r\n"].concat();
    for (bytes, stream) in [
        (vec![], false),
        (whole[..20].to_vec(), false),
        (whole[..whole.len() - 5].to_vec(), false),
        (begun, true),
        (ended, true),
    ] {
        let failure = failure(Step::Close(bytes), stream).await.failure;
        assert_eq!(failure.code, ErrorCode::MODEL_INTERRUPTED, "{}", failure.message);
        assert!(failure.retryable);
    }
}

#[tokio::test]
async fn garbage_is_a_bad_response() {
    for (bytes, stream, text) in [
        (b"SSH-2.0-OpenSSH_9\r\n\r\n".to_vec(), false, "answered with something that is not HTTP"),
        (response("200 OK", "", "<html>hello"), false, "is not a chat completion"),
        (
            response("200 OK", "content-type: text/html\r\n", "<html>"),
            true,
            "is a stream without choices",
        ),
        (
            response("200 OK", "content-type: text/event-stream\r\n", "data: {oops\n\n"),
            true,
            "is not a chat completion",
        ),
        (response("200 OK", "", "{}"), false, "has no choices[0].message"),
        (response("204 No Content", "", ""), false, "answered with status 204"),
    ] {
        let failure = failure(Step::Close(bytes), stream).await.failure;
        assert_eq!(failure.code, ErrorCode::MODEL_BAD_RESPONSE, "{}", failure.message);
        assert!(failure.message.contains(text), "{}", failure.message);
    }
}

#[tokio::test]
async fn bodies_past_the_limit_are_refused() {
    let limits = TransportLimits { body_bytes_max: 1_000, ..TransportLimits::default() };
    let client = ModelClient::new(limits).unwrap();
    let long = "x".repeat(2_000);
    let stream = [STREAM_HEAD.as_bytes(), &chunk(text_event(&long).as_bytes())].concat();
    for (bytes, is_stream) in [(answer(&long), false), (stream, true)] {
        let server = Server::start(vec![Step::Answer(vec![bytes])]).await;
        let request = request(&server.base_url, is_stream);
        let failure = client.call(request, &mut |_| {}).await.unwrap_err();
        assert_eq!(failure.failure.code, ErrorCode::MODEL_BAD_RESPONSE);
        assert_eq!(message(&failure), "model \"m\" at HOST answered with more than 1000 bytes");
    }
    // An error's body is only read as far as it is shown.
    let limits = TransportLimits { error_body_bytes_max: 20, ..TransportLimits::default() };
    let client = ModelClient::new(limits).unwrap();
    let server = Server::start(vec![Step::Answer(vec![response("500 Oops", "", &long)])]).await;
    let failure = client.call(request(&server.base_url, false), &mut |_| {}).await.unwrap_err();
    assert_eq!(failure.failure.code, ErrorCode::MODEL_SERVER_ERROR);

    let limits = TransportLimits { body_bytes_max: 0, ..TransportLimits::default() };
    assert!(ModelClient::new(limits).is_err());
}

#[tokio::test]
async fn a_server_that_is_not_there_cannot_be_connected_to() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = call(request(&format!("http://{address}/v1"), false)).await.unwrap_err();
    assert_eq!(failure.failure.code, ErrorCode::MODEL_CONNECT);
    assert!(failure.failure.retryable);
    let text = message(&failure);
    assert!(text.starts_with("cannot connect to model \"m\" at HOST: "), "{text}");
    assert!(text.contains("refused"), "{text}");
    assert!(text.contains("\nhint: is the server running?"), "{text}");
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_cannot_be_connected_to_by_https() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&response("400 Bad Request", "", "")).await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
    });
    let failure = call(request(&url, false)).await.unwrap_err().failure;
    assert_eq!(failure.code, ErrorCode::MODEL_CONNECT, "{}", failure.message);
    assert!(failure.to_text().contains("SSL_CERT_FILE"), "{}", failure.to_text());
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_given_up() {
    // The server waits for the end of a request and never answers the TLS handshake.
    let server = Server::start(vec![Step::Hang(vec![])]).await;
    let mut request = request(&server.base_url.replace("http://", "https://"), false);
    request.connect_ms_max = 40;
    let failure = call(request).await.unwrap_err();
    assert_eq!(failure.failure.code, ErrorCode::MODEL_CONNECT);
    assert_eq!(
        message(&failure),
        "no connection to model \"m\" at HOST within 0.04 s\n\
         hint: check the address and the network, or raise the model's connect_s"
    );
    assert!(server.requests().is_empty());
}
