//! Bounds and connections: sizes, slow and absent clients, too many at once, the end.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use crate::support::{
    Client, Upstream, answer, begin_stream, chat, gateway, gateway_with, post, signal,
};

#[test]
fn a_body_past_its_limit_is_refused_however_it_comes() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["limits"] = json!({"body_bytes_max": 1000});
    });
    let mut request = chat("m");
    request["user"] = json!("u".repeat(1_000_000));
    let answer = Client::new(&gateway).ask(&request);
    assert_eq!(answer.refusal().0, 413);
    assert!(answer.body.contains("more than 1000 bytes"), "{}", answer.body);
    let mut client = Client::new(&gateway);
    client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
          content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    for _ in 0..10 {
        client.send(format!("c8\r\n{}\r\n", " ".repeat(200)).as_bytes());
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.read().unwrap().refusal().0, 413);
    assert_eq!(Client::new(&gateway).ask(&chat("m")).status, 200);
}

#[test]
fn a_head_past_its_limits_is_refused() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["limits"] = json!({"head_bytes_max": 8192, "headers_max": 8});
    });
    let mut client = Client::new(&gateway);
    let many: String = (0..9).map(|idx| format!("x-{idx}: y\r\n")).collect();
    assert_eq!(client.post(&many, &chat("m").to_string()).unwrap().status, 431);
    let mut client = Client::new(&gateway);
    let long = format!("x: {}\r\n", "y".repeat(20_000));
    let answer = client.post(&long, &chat("m").to_string());
    assert!(answer.is_none_or(|answer| answer.status == 431));
}

#[test]
fn a_client_that_never_sends_its_head_or_its_body_is_given_up() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["limits"] = json!({"head_ms_max": 20, "body_ms_max": 20});
    });
    let mut client = Client::new(&gateway);
    client.send(b"POST /v1/chat/comp");
    assert!(client.read().is_none_or(|answer| answer.status == 408));
    let mut client = Client::new(&gateway);
    client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
          content-type: application/json\r\ncontent-length: 10\r\n\r\n{",
    );
    assert_eq!(client.read().unwrap().refusal().0, 408);
}

#[test]
fn bytes_that_are_no_http_end_their_connection_only() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET\r\n\r\n",
        b"\r\n\r\n\0",
        b"PRI * HTTP/2.0\r\n\r\n",
    ] {
        let mut client = Client::new(&gateway);
        client.send(bytes);
        client.close_write();
        assert!(client.read().is_none_or(|answer| answer.status == 400));
    }
    assert_eq!(Client::new(&gateway).ask(&chat("m")).status, 200);
}

#[test]
fn requests_past_the_limit_are_told_to_come_again() {
    let (release, released) = signal();
    let released = Mutex::new(released);
    let (begun, has_begun) = signal();
    let upstream = Upstream::start(move |seen, stream| {
        begun.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
        answer(seen, stream, "x");
    });
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["limits"] = json!({"requests_max": 1});
    });
    let mut first = Client::new(&gateway);
    first.send(post("", &chat("m").to_string()).as_bytes());
    has_begun.recv().unwrap();
    let mut second = Client::new(&gateway);
    let refused = second.ask(&chat("m"));
    assert_eq!(refused.refusal().0, 429);
    assert_eq!(refused.headers["retry-after"], "1");
    release.send(()).unwrap();
    assert_eq!(first.read().unwrap().status, 200);
    release.send(()).unwrap();
    assert_eq!(second.ask(&chat("m")).status, 200);
}

#[test]
fn a_client_that_is_gone_ends_the_call_made_for_it() {
    for stream in [false, true] {
        let (begun, has_begun) = signal();
        let (ended, has_ended) = signal();
        let upstream = Upstream::start(move |_, connection| {
            begun.send(()).unwrap();
            if stream {
                begin_stream(connection);
            }
            // Reads the end that the gateway makes.
            let mut byte = [0];
            assert_eq!(std::io::Read::read(connection, &mut byte).unwrap_or(0), 0);
            ended.send(()).unwrap();
        });
        let gateway = gateway(&[("m", vec![upstream.model("m")])]);
        let mut request = chat("m");
        request["stream"] = json!(stream);
        let mut client = Client::new(&gateway);
        client.send(post("", &request.to_string()).as_bytes());
        has_begun.recv().unwrap();
        drop(client);
        has_ended.recv().unwrap();
    }
}

#[test]
fn a_client_that_takes_nothing_is_given_up_with_its_call() {
    let (ended, has_ended) = signal();
    let upstream = Upstream::start(move |_, connection| {
        begin_stream(connection);
        let text = "y".repeat(60_000);
        let piece = json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        let data = format!("data: {piece}\n\n");
        let chunk = format!("{:x}\r\n{data}\r\n", data.len());
        while std::io::Write::write_all(connection, chunk.as_bytes()).is_ok() {}
        ended.send(()).unwrap();
    });
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["limits"] = json!({"stall_ms_max": 50});
    });
    let mut request = chat("m");
    request["stream"] = json!(true);
    let mut client = Client::new(&gateway);
    client.send(post("", &request.to_string()).as_bytes());
    has_ended.recv().unwrap();
    drop(client);
}

#[test]
fn the_end_lets_answers_under_way_be_sent_and_closes_what_is_idle() {
    let (release, released) = signal();
    let released = Mutex::new(released);
    let (begun, has_begun) = signal();
    let upstream = Upstream::start(move |seen, stream| {
        begun.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
        answer(seen, stream, "x");
    });
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut idle = Client::new(&gateway);
    assert_eq!(idle.get("/healthz", "").status, 200);
    let mut busy = Client::new(&gateway);
    busy.send(post("", &chat("m").to_string()).as_bytes());
    has_begun.recv().unwrap();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| gateway.close(Duration::from_secs(60)));
        assert!(idle.read().is_none());
        release.send(()).unwrap();
        assert_eq!(busy.read().unwrap().status, 200);
        assert!(closing.join().unwrap());
    });
    assert!(std::net::TcpStream::connect(gateway.address()).is_err());
}

#[test]
fn the_end_cuts_off_what_takes_too_long() {
    let (release, released) = signal();
    let released = Mutex::new(released);
    let (begun, has_begun) = signal();
    let upstream = Upstream::start(move |_, _| {
        begun.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
    });
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    client.send(post("", &chat("m").to_string()).as_bytes());
    has_begun.recv().unwrap();
    assert!(!gateway.close(Duration::from_millis(1)));
    assert!(client.read().is_none());
    drop(release);
}

#[test]
fn connections_past_the_limit_wait_for_their_turn() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["limits"] = json!({"connections_max": 1});
    });
    let mut first = Client::new(&gateway);
    assert_eq!(first.ask(&chat("m")).status, 200);
    let mut second = Client::new(&gateway);
    second.send(post("", &chat("m").to_string()).as_bytes());
    assert_eq!(first.ask(&chat("m")).status, 200);
    assert_eq!(upstream.count(), 2);
    drop(first);
    assert_eq!(second.read().unwrap().status, 200);
}
