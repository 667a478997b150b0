//! Calls that succeed.

use mainspring_session::{FinishReason, Usage};

use crate::server::{STREAM_HEAD, Server, Step, answer, chunk, text_event};
use crate::{KEY, call, call_with_deltas, client, request};

/// A streamed answer, cut into pieces of `size` bytes, each an HTTP chunk and a write of its own.
pub fn streamed(texts: &[&str], size: usize) -> Vec<Vec<u8>> {
    let mut body: String = texts.iter().map(|text| text_event(text)).collect();
    body.push_str("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
    body.push_str("data: [DONE]\n\n");
    let mut pieces = vec![STREAM_HEAD.as_bytes().to_vec()];
    pieces.extend(body.as_bytes().chunks(size).map(chunk));
    pieces.push(b"0\r\n\r\n".to_vec());
    pieces
}

#[tokio::test]
async fn a_whole_answer_is_decoded_and_the_request_is_as_it_should_be() {
    let server = Server::start(vec![Step::Answer(vec![answer("Grüße")])]).await;
    let request = request(&server.base_url, false);
    let body = String::from_utf8(request.body.to_vec()).unwrap();
    let reply = call(request).await.unwrap();
    assert_eq!(reply.answer.text, "Grüße");
    assert_eq!(reply.finish_reason, FinishReason::Stop);
    assert_eq!(reply.usage, Usage { input_tokens: 3, output_tokens: 2, ..Usage::default() });
    assert_eq!(reply.timing.first_token_us, None);

    let sent = server.requests().remove(0);
    let (head, sent_body) = sent.split_once("\r\n\r\n").unwrap();
    assert_eq!(sent_body, body);
    let mut lines: Vec<&str> = head.lines().collect();
    assert_eq!(lines.remove(0), "POST /v1/chat/completions HTTP/1.1");
    lines.sort_unstable();
    let host = server.base_url.trim_start_matches("http://").trim_end_matches("/v1");
    let expected = [
        "accept: */*".to_owned(),
        format!("authorization: Bearer {KEY}"),
        format!("content-length: {}", body.len()),
        "content-type: application/json".to_owned(),
        format!("host: {host}"),
        format!("user-agent: mainspring/{}", env!("CARGO_PKG_VERSION")),
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_stream_is_decoded_however_it_is_cut() {
    for size in [1, 7, 10_000] {
        let script = vec![Step::Answer(streamed(&["Grü", "ße 🎉"], size))];
        let server = Server::start(script).await;
        let request = request(&server.base_url, true);
        let (reply, texts) = call_with_deltas(&client(), request).await;
        let reply = reply.unwrap();
        assert_eq!(reply.answer.text, "Grüße 🎉");
        assert_eq!(texts, ["Grü", "ße 🎉"]);
        let first_token_us = reply.timing.first_token_us.unwrap();
        assert!(first_token_us <= reply.timing.total_us);
    }
}

#[tokio::test]
async fn connections_are_used_again_after_answers_streams_and_errors() {
    let refused = crate::server::response("500 Oops", "", "{}");
    let server = Server::start(vec![
        Step::Answer(vec![answer("a")]),
        Step::Answer(streamed(&["b"], 10_000)),
        Step::Answer(streamed(&["c"], 3)),
        Step::Answer(vec![refused]),
        Step::Answer(vec![answer("d")]),
    ])
    .await;
    let client = client();
    for stream in [false, true, true, false, false] {
        let _ = client.call(request(&server.base_url, stream), &mut |_| {}).await;
        // The end of a stream is read behind the caller's back.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!((server.requests().len(), server.connections()), (5, 1));
}

#[tokio::test]
async fn many_calls_run_at_once_on_connections_that_are_kept() {
    let server = Server::start(vec![Step::Answer(vec![answer("x")])]).await;
    let client = client();
    let one = request(&server.base_url, false);
    for _ in 0..2 {
        let calls = (0..200).map(|_| {
            let (client, one) = (client.clone(), one.clone());
            async move { client.call(one, &mut |_| {}).await }
        });
        for reply in futures_util::future::join_all(calls).await {
            assert_eq!(reply.unwrap().answer.text, "x");
        }
    }
    assert_eq!(server.requests().len(), 400);
    assert!(server.connections() <= 200, "{}", server.connections());
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_understood() {
    let server = Server::start(vec![Step::Answer(vec![answer("whole")])]).await;
    let reply = call(request(&server.base_url, true)).await.unwrap();
    assert_eq!(reply.answer.text, "whole");
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let mut server = Server::start(vec![Step::Hang(Vec::new())]).await;
    {
        let mut on_delta = |_: mainspring_wire::Delta<'_>| {};
        let client = client();
        let request = request(&server.base_url, false);
        let mut call = std::pin::pin!(client.call(request, &mut on_delta));
        while server.requests().is_empty() {
            tokio::select! {
                reply = &mut call => panic!("{reply:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    server.connection_gone().await;
}
