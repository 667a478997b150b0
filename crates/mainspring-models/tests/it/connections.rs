//! Direct connections: which are kept, which are passed over, and what large bodies do to them.

use std::sync::Arc;

use mainspring_models::{ModelClient, TransportLimits};
use mainspring_session::ErrorCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::server::{Server, Step, answer, response};
use crate::{call, client, request};

fn client_with(limits: TransportLimits) -> ModelClient {
    ModelClient::new(limits).unwrap()
}

async fn succeed(client: &ModelClient, server: &Server) {
    let reply = client.call(request(&server.base_url, false), &mut |_| {}).await;
    assert_eq!(reply.unwrap().answer.text, "x");
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_waited_is_passed_over() {
    let told = Arc::new(Notify::new());
    let mut server = Server::start(vec![
        Step::CloseWhenTold(answer("x"), Arc::clone(&told)),
        Step::Answer(vec![answer("x")]),
    ])
    .await;
    let client = client();
    succeed(&client, &server).await;
    told.notify_one();
    server.connection_gone().await;
    succeed(&client, &server).await;
    succeed(&client, &server).await;
    assert_eq!((server.requests().len(), server.connections()), (3, 2));
}

#[tokio::test]
async fn a_connection_with_more_than_an_answer_on_it_is_not_used_again() {
    let more = [answer("x"), b"HTTP/1.1 200 OK\r\n".to_vec()].concat();
    let server = Server::start(vec![Step::Answer(vec![more]), Step::Answer(vec![answer("x")])]);
    let server = server.await;
    let client = client();
    succeed(&client, &server).await;
    succeed(&client, &server).await;
    assert_eq!((server.requests().len(), server.connections()), (2, 2));
}

#[tokio::test]
async fn a_server_that_wants_to_close_is_heeded() {
    let last = response("500 Oops", "connection: close\r\n", "{}");
    let mut server = Server::start(vec![Step::Answer(vec![last])]).await;
    let client = client();
    for connections in 1..=2 {
        let failure = client.call(request(&server.base_url, false), &mut |_| {}).await.unwrap_err();
        assert_eq!(failure.failure.code, ErrorCode::MODEL_SERVER_ERROR);
        server.connection_gone().await;
        assert_eq!(server.connections(), connections);
    }
}

#[tokio::test]
async fn no_more_connections_wait_than_the_limit_allows() {
    let mut server = Server::start(vec![Step::Answer(vec![answer("x")])]).await;
    let limits = TransportLimits { idle_connections_max: 1, ..TransportLimits::default() };
    let client = client_with(limits);
    futures_util::future::join(succeed(&client, &server), succeed(&client, &server)).await;
    assert_eq!(server.connections(), 2);
    server.connection_gone().await;
    futures_util::future::join(succeed(&client, &server), succeed(&client, &server)).await;
    assert_eq!(server.connections(), 3);

    // None is kept, and a further server finds no place.
    for limits in [
        TransportLimits { idle_connections_max: 0, ..TransportLimits::default() },
        TransportLimits { idle_ms_max: 0, ..TransportLimits::default() },
    ] {
        let mut server = Server::start(vec![Step::Answer(vec![answer("x")])]).await;
        succeed(&client_with(limits), &server).await;
        server.connection_gone().await;
    }
    let first = Server::start(vec![Step::Answer(vec![answer("x")])]).await;
    let mut second = Server::start(vec![Step::Answer(vec![answer("x")])]).await;
    let client = client_with(TransportLimits { pools_max: 1, ..TransportLimits::default() });
    for _ in 0..2 {
        succeed(&client, &first).await;
        succeed(&client, &second).await;
        second.connection_gone().await;
    }
    assert_eq!((first.connections(), second.connections()), (1, 2));
}

#[tokio::test]
async fn a_connection_that_waits_too_long_is_closed_and_so_are_all_with_the_client() {
    let mut server = Server::start(vec![Step::Answer(vec![answer("x")])]).await;
    let client = client_with(TransportLimits { idle_ms_max: 20, ..TransportLimits::default() });
    for connections in 1..=2 {
        succeed(&client, &server).await;
        server.connection_gone().await;
        assert_eq!(server.connections(), connections);
    }
    let client = crate::client();
    succeed(&client, &server).await;
    drop(client);
    server.connection_gone().await;
}

#[tokio::test]
async fn large_requests_and_large_answers_arrive_whole() {
    let text = "0123456789".repeat(30_000);
    let server = Server::start(vec![Step::Answer(vec![answer(&text)])]).await;
    let client = client();
    for _ in 0..2 {
        let mut request = request(&server.base_url, false);
        request.body = [&request.body[..], text.as_bytes()].concat().into();
        let body = String::from_utf8(request.body.to_vec()).unwrap();
        let reply = client.call(request, &mut |_| {}).await.unwrap();
        assert_eq!(reply.answer.text, text);
        assert!(server.requests().last().unwrap().ends_with(&body));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_answer_before_the_end_of_a_request_is_heard() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 64]).await.unwrap();
        stream.write_all(&response("413 Too Large", "", "{}")).await.unwrap();
        // What follows is never read.
        std::future::pending::<()>().await;
        drop(stream);
    });
    let mut request = request(&url, false);
    request.body = vec![b' '; 64 << 20].into();
    let failure = call(request).await.unwrap_err().failure;
    assert!(failure.message.contains("answered with status 413"), "{}", failure.message);
}
