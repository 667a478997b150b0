//! Drives the load server as its clients do: the real program, over real sockets.
//!
//! Owns the proof that answers are well-formed and follow the conversation. Invariant: every test
//! starts its own server on a free port and ends it by closing its stdin.

// Marked as test code, because clippy's rule on `unwrap` looks for the mark, not for the folder.
#[cfg(test)]
mod client;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use client::{Client, LoadServer};
use serde_json::{Value, json};

fn request_body(assistant_turns: usize, stream: bool) -> String {
    let mut messages = vec![json!({"role": "user", "content": "say \"role\":\"assistant\""})];
    for _ in 0..assistant_turns {
        messages.push(json!({"role": "assistant", "content": "so be it"}));
    }
    json!({"model": "bench", "messages": messages, "stream": stream}).to_string()
}

fn tool_calls(answer: &Value) -> Vec<Value> {
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    calls.as_array().cloned().unwrap_or_default()
}

#[test]
fn calls_tools_until_the_conversation_holds_enough_turns_and_then_answers() {
    let server = LoadServer::start(&[
        "--tool-turns",
        "2",
        "--tools-per-turn",
        "3",
        "--tool-name",
        "look_up",
        "--argument-chars",
        "40",
        "--answer-chars",
        "77",
    ]);
    let mut client = Client::connect(&server);
    let mut ids = HashSet::new();
    for turn in 0..2 {
        let answer = client.chat(&request_body(turn, false));
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
        for call in tool_calls(&answer) {
            assert_eq!(call["type"], "function");
            assert_eq!(call["function"]["name"], "look_up");
            let arguments = call["function"]["arguments"].as_str().unwrap();
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert_eq!(arguments["text"].as_str().unwrap().len(), 40);
            assert!(ids.insert(call["id"].as_str().unwrap().to_owned()));
        }
    }
    assert_eq!(ids.len(), 6);
    let answer = client.chat(&request_body(2, false));
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["message"]["content"].as_str().unwrap().len(), 77);
    let usage = &answer["usage"];
    let sum = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(sum("total_tokens"), sum("prompt_tokens") + sum("completion_tokens"));
}

#[test]
fn counts_assistant_messages_with_a_space_after_the_colon() {
    let server = LoadServer::start(&["--tool-turns", "1"]);
    let mut client = Client::connect(&server);
    let body = r#"{"messages": [{"role": "assistant", "content": ""}]}"#;
    let answer = client.chat(body);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[test]
fn streams_the_text_in_as_many_pieces_as_asked_then_usage_and_done() {
    for gap in ["0", "1"] {
        let server = LoadServer::start(&[
            "--answer-chars",
            "90",
            "--answer-tokens",
            "7",
            "--token-gap-ms",
            gap,
        ]);
        let mut client = Client::connect(&server);
        let body = r#"{"messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
        for _ in 0..2 {
            let events = client.chat_stream(body);
            let pieces: Vec<&str> = events
                .iter()
                .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
                .filter(|piece| !piece.is_empty())
                .collect();
            assert_eq!(pieces.len(), 7);
            assert_eq!(pieces.concat().len(), 90);
            assert_eq!(events[8]["choices"][0]["finish_reason"], "stop");
            assert_eq!(events[9]["choices"], json!([]));
            assert_eq!(events[9]["usage"]["completion_tokens"], 7);
            assert_eq!(events.len(), 10);
        }
    }
}

#[test]
fn streams_tool_calls_whose_pieces_join_to_arguments() {
    let server = LoadServer::start(&["--tool-turns", "1", "--tools-per-turn", "2"]);
    let events = Client::connect(&server).chat_stream(&request_body(0, true));
    let mut ids = HashSet::new();
    let mut arguments = [String::new(), String::new()];
    for event in &events {
        for call in (event["choices"][0]["delta"]["tool_calls"].as_array()).into_iter().flatten() {
            let idx = call["index"].as_u64().unwrap() as usize;
            arguments[idx] += call["function"]["arguments"].as_str().unwrap();
            ids.extend(call["id"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(ids.len(), 2);
    for arguments in arguments {
        let arguments: Value = serde_json::from_str(&arguments).unwrap();
        assert_eq!(arguments["text"].as_str().unwrap().len(), 16);
    }
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn reads_chunked_bodies_and_requests_cut_at_every_byte() {
    let server = LoadServer::start(&["--tool-turns", "1"]);
    let mut client = Client::connect(&server);
    let body = request_body(1, false);
    let (first, second) = body.as_bytes().split_at(25);
    let mut bytes =
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for chunk in [first, second] {
        write!(bytes, "{:x};note=1\r\n", chunk.len()).unwrap();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\nchecksum: none\r\n\r\n");
    for byte in &bytes {
        client.send(&[*byte]);
    }
    let answer = client.receive();
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    // Two requests in one write are answered in their order, and the connection still works.
    let models = b"GET /v1/models HTTP/1.1\r\n\r\n";
    client.send(&[&bytes[..], models].concat());
    assert_eq!(client.receive().json()["object"], "chat.completion");
    assert_eq!(client.receive().json()["data"][0]["id"], "bench");
}

#[test]
fn a_delayed_answer_comes_no_sooner_and_its_lost_client_harms_nobody() {
    let server = LoadServer::start(&["--delay-ms", "50"]);
    let mut lost = Client::connect(&server);
    lost.send_chat(&request_body(0, false));
    let mut watcher = Client::connect(&server);
    while watcher.get("/stats").json()["request_count"] == 0 {}
    drop(lost);
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(&server)).collect();
    let start = Instant::now();
    for client in &mut clients {
        client.send_chat(&request_body(0, false));
    }
    for client in &mut clients {
        assert_eq!(client.receive().status, 200);
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
    let stats = watcher.get("/stats").json();
    assert_eq!(stats["request_count"], 101);
    assert_eq!(stats["open_connection_count"], 101);
}

#[test]
fn a_key_that_has_made_its_requests_is_refused_and_another_is_not() {
    let server = LoadServer::start(&["--requests-per-minute", "2"]);
    let mut client = Client::connect(&server);
    let chat = |client: &mut Client, key: &str| {
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {key}");
        client.send(format!("{head}\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes());
        client.receive().status
    };
    let statuses: Vec<u16> = (0..4).map(|_| chat(&mut client, "a")).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    assert_eq!(chat(&mut client, "b"), 200);
    let stats = client.get("/stats").json();
    assert_eq!((&stats["request_count"], &stats["refused_count"]), (&json!(5), &json!(2)));
}

#[test]
fn faults_are_of_every_kind_and_as_many_as_asked_for() {
    let server = LoadServer::start(&["--fault-per-mille", "1000"]);
    let mut statuses = HashSet::new();
    let mut kinds = HashSet::new();
    for _ in 0..60 {
        let mut client = Client::connect(&server);
        client.send_chat(&request_body(0, false));
        // Stdin closed, or a connection given up, are the only ends of one that hangs.
        client.socket_timeout();
        match client.try_receive() {
            None => drop(kinds.insert("nothing or half")),
            Some(answer) if answer.status == 200 => {
                assert!(serde_json::from_slice::<Value>(&answer.body).is_err());
                kinds.insert("no JSON");
            }
            Some(answer) => drop(statuses.insert(answer.status)),
        }
    }
    assert_eq!(statuses, HashSet::from([429, 500, 503]));
    assert_eq!(kinds.len(), 2);
    let stats = Client::connect(&server).get("/stats").json();
    assert_eq!(stats["fault_count"], 60);
}

#[test]
fn refuses_what_it_does_not_serve() {
    let server = LoadServer::start(&[]);
    let mut client = Client::connect(&server);
    assert_eq!(client.get("/v1/embeddings").status, 404);
    assert_eq!(client.get("/v1/chat/completions").status, 404);
    let refusals = [
        ("hello\r\n\r\n", "request line is not `METHOD PATH HTTP/1.1`"),
        ("GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "content length is not a whole number"),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
            "chunk size is not a hexadecimal number",
        ),
    ];
    for (bytes, message) in refusals {
        let mut client = Client::connect(&server);
        client.send(bytes.as_bytes());
        let answer = client.receive();
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["message"], message);
        assert!(client.is_closed());
    }
}

#[test]
fn closes_after_the_answer_when_the_client_asks_for_it() {
    let server = LoadServer::start(&[]);
    let mut client = Client::connect(&server);
    client.send(b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(client.receive().status, 200);
    assert!(client.is_closed());
}

#[test]
fn exits_when_stdin_closes() {
    let mut server = LoadServer::start(&[]);
    assert!(server.close_stdin().success());
}

#[test]
fn a_wrong_option_is_named_with_the_values_allowed() {
    let refusals = [
        (
            vec!["--tools-per-turn", "0"],
            "option \"--tools-per-turn\" got \"0\", allowed is a whole number from 1 to 1000",
        ),
        (vec!["--fast", "1"], "option \"--fast\" does not exist"),
        (vec!["--port"], "option \"--port\" has no value"),
        (
            vec!["--tool-name", "a\"b"],
            "option \"--tool-name\" got \"a\"b\", allowed are letters, digits, \"_\" and \"-\"",
        ),
    ];
    for (args, message) in refusals {
        let mut child = Command::new(env!("CARGO_BIN_EXE_load-server"))
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(2));
        let mut text = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().next(), Some(message));
    }
}
