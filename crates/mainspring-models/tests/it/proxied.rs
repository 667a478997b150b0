//! Calls through a proxy. Which proxy is used is a matter of a process's environment, so the test
//! runs itself in a second process.

use std::process::Stdio;

use mainspring_session::ErrorCode;

use crate::calls::streamed;
use crate::server::{Server, Step, answer, response};
use crate::{call_with_deltas, client, request};

/// Tells the second process that it is one.
const IS_PROXIED: &str = "MAINSPRING_TEST_IS_PROXIED";
const REMOTE: &str = "http://model.invalid/v1";

#[tokio::test]
async fn a_proxy_is_used_for_plain_http_but_never_to_a_loopback_server() {
    if std::env::var_os(IS_PROXIED).is_some() {
        return through_the_proxy().await;
    }
    let proxy = Server::start(vec![
        Step::Answer(vec![answer("x")]),
        Step::Answer(streamed(&["a", "b"], 10_000)),
        Step::Answer(vec![response("429 Slow", "retry-after: 7\r\n", "{}")]),
        Step::Close(answer("x")[..20].to_vec()),
    ])
    .await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        "proxied::a_proxy_is_used_for_plain_http_but_never_to_a_loopback_server",
    ]);
    child.args(["--nocapture"]).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "REQUEST_METHOD"] {
        child.env_remove(name);
    }
    child.env("http_proxy", proxy.base_url.trim_end_matches("/v1")).env(IS_PROXIED, "1");
    let output = child.output().await.unwrap();
    let text = format!("{output:?}");
    assert!(output.status.success(), "{text}");
    let requests = proxy.requests();
    assert_eq!(requests.len(), 4, "{text}");
    for sent in requests {
        let line = "POST http://model.invalid/v1/chat/completions HTTP/1.1\r\n";
        assert!(sent.starts_with(line), "{sent}");
    }
}

/// The second process's part.
async fn through_the_proxy() {
    let client = client();
    let reply = client.call(request(REMOTE, false), &mut |_| {}).await.unwrap();
    assert_eq!(reply.answer.text, "x");
    let (reply, texts) = call_with_deltas(&client, request(REMOTE, true)).await;
    assert_eq!(reply.unwrap().answer.text, "ab");
    assert_eq!(texts, ["a", "b"]);
    let failure = client.call(request(REMOTE, false), &mut |_| {}).await.unwrap_err();
    assert_eq!(failure.failure.code, ErrorCode::MODEL_RATE_LIMITED);
    assert_eq!(failure.retry_after_ms, Some(7_000));
    let failure = client.call(request(REMOTE, false), &mut |_| {}).await.unwrap_err().failure;
    assert_eq!(failure.code, ErrorCode::MODEL_INTERRUPTED, "{}", failure.message);

    let local = Server::start(vec![Step::Answer(vec![answer("local")])]).await;
    let reply = client.call(request(&local.base_url, false), &mut |_| {}).await.unwrap();
    assert_eq!(reply.answer.text, "local");
}
