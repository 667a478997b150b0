//! What a client gets: whole answers, streams, tools, and what routing makes of them.

use serde_json::{Value, json};

use crate::support::{
    Client, Upstream, answer, begin_stream, chat, end_stream, gateway, gateway_with,
    message_answer, respond, send_event,
};

#[test]
fn a_whole_answer_is_a_chat_completion_and_names_its_model() {
    let upstream = Upstream::saying(&["Hi \"there\"."]);
    let gateway = gateway(&[("small", vec![upstream.model("m-1")])]);
    let mut client = Client::new(&gateway);
    let mut request = chat("small");
    request["temperature"] = json!(0.5);
    request["seed"] = json!(7);
    request["max_completion_tokens"] = json!(100);
    let answer = client.ask(&request);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let found = answer.json();
    assert_eq!(found["object"], "chat.completion");
    assert_eq!(found["model"], "m-1");
    let message = json!({"role": "assistant", "content": "Hi \"there\".", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(found["choices"], json!([choice]));
    assert_eq!(found["usage"]["total_tokens"], 15);
    assert_eq!(answer.headers["x-mainspring-model"], "m-1");
    assert_eq!(answer.headers["x-mainspring-attempts"], "1");
    assert_eq!(answer.headers["x-mainspring-cost-usd"], "0.000020000");
    let sent = &upstream.bodies()[0];
    assert_eq!(sent["messages"], json!([{"role": "user", "content": "hello"}]));
    assert_eq!((&sent["temperature"], &sent["seed"]), (&json!(0.5), &json!(7)));
    assert_eq!(sent["model"], "m-1");
    assert!(sent.to_string().contains("100"), "{sent}");
    let seen = upstream.seen.lock().unwrap();
    assert!(seen[0].head.contains("authorization: bearer not-a-real-key-1234"), "{}", seen[0].head);
    // The connection is kept.
    drop(seen);
    assert_eq!(client.ask(&chat("small")).status, 200);
}

#[test]
fn a_stream_has_a_role_pieces_an_end_the_usage_and_done() {
    let upstream = Upstream::saying(&["one two three"]);
    let gateway = gateway(&[("small", vec![upstream.model("m-1")])]);
    let mut request = chat("small");
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let answer = Client::new(&gateway).ask(&request);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["x-mainspring-model"], "m-1");
    assert_eq!(answer.streamed_text(), "one two three");
    let events = answer.events();
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let ends: Vec<Value> = events[events.len() - 3..events.len() - 1]
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    assert_eq!(ends[0]["choices"][0]["finish_reason"], "stop");
    assert_eq!(ends[1]["choices"], json!([]));
    assert_eq!(ends[1]["usage"]["completion_tokens"], 5);
    assert_eq!(ends[1]["mainspring"], json!({"attempts": 1, "cost_usd": 0.00002}));
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[test]
fn pieces_reach_the_client_before_the_model_has_ended() {
    let (release, released) = crate::support::signal();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::start(move |_, stream| {
        begin_stream(stream);
        send_event(stream, &json!({"choices": [{"index": 0, "delta": {"content": "first"}}]}));
        released.lock().unwrap().recv().unwrap();
        end_stream(stream);
    });
    let gateway = gateway(&[("small", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    let mut request = chat("small");
    request["stream"] = json!(true);
    client.send(crate::support::post("", &request.to_string()).as_bytes());
    while !client.line().contains("first") {}
    release.send(()).unwrap();
    while !client.line().contains("[DONE]") {}
}

#[test]
fn tools_are_passed_on_and_their_calls_come_back() {
    let call = json!({"id": "c1", "type": "function",
                      "function": {"name": "add", "arguments": "{\"a\": 1}"}});
    let message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
    let said = message.clone();
    let upstream = Upstream::start(move |seen, stream| match seen.body["messages"].as_array() {
        Some(messages) if messages.len() > 1 => answer(seen, stream, "2"),
        _ => message_answer(stream, &said, "tool_calls"),
    });
    let gateway = gateway(&[("small", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    let mut request = chat("small");
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}},
                            "required": ["a"]});
    request["tools"] = json!([{"type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": parameters}}]);
    let answer = client.ask(&request);
    let found = answer.json();
    assert_eq!(found["choices"][0]["message"]["tool_calls"], message["tool_calls"]);
    assert_eq!(found["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(upstream.bodies()[0]["tools"], request["tools"]);
    let messages = request["messages"].as_array_mut().unwrap();
    messages.push(message);
    messages.push(json!({"role": "tool", "tool_call_id": "c1", "content": "2"}));
    assert_eq!(client.ask(&request).json()["choices"][0]["message"]["content"], "2");
    let sent = &upstream.bodies()[1]["messages"];
    assert_eq!(sent[1]["tool_calls"][0]["id"], "c1");
    assert_eq!(sent[2]["tool_call_id"], "c1");
}

#[test]
fn a_streamed_tool_call_comes_whole_with_its_id() {
    let upstream = Upstream::start(|_, stream| {
        begin_stream(stream);
        let begun = json!({"index": 0, "id": "c9", "type": "function",
                           "function": {"name": "add", "arguments": ""}});
        send_event(stream, &json!({"choices": [{"index": 0, "delta": {"tool_calls": [begun]}}]}));
        for piece in ["{\"a\"", ": 1}"] {
            let rest = json!({"index": 0, "function": {"arguments": piece}});
            send_event(
                stream,
                &json!({"choices": [{"index": 0, "delta": {"tool_calls": [rest]}}]}),
            );
        }
        end_stream(stream);
    });
    let gateway = gateway(&[("small", vec![upstream.model("m")])]);
    let mut request = chat("small");
    request["stream"] = json!(true);
    request["tools"] = json!([{"type": "function", "function": {"name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]);
    let answer = Client::new(&gateway).ask(&request);
    let chunks: Vec<Value> =
        answer.events().iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let calls: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"])
        .filter(|calls| !calls.is_null())
        .collect();
    assert_eq!(
        calls,
        [&json!([{"index": 0, "id": "c9", "type": "function",
                  "function": {"name": "add", "arguments": "{\"a\": 1}"}}])]
    );
}

fn schema() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {
        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}})
}

#[test]
fn an_answer_that_does_not_fit_is_mended_then_the_next_model_is_asked() {
    let small = Upstream::saying(&["{\"n\": \"one\"}"]);
    let large = Upstream::saying(&["{\"n\": 1}"]);
    let gateway = gateway(&[("auto", vec![small.model("s"), large.model("l")])]);
    let mut request = chat("auto");
    request["response_format"] = schema();
    let answer = Client::new(&gateway).ask(&request);
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "{\"n\": 1}");
    assert_eq!(answer.headers["x-mainspring-model"], "l");
    assert_eq!(answer.headers["x-mainspring-attempts"], "3");
    assert_eq!((small.count(), large.count()), (2, 1));
    let mended = &small.bodies()[1]["messages"];
    assert!(mended[2]["content"].as_str().unwrap().contains("rejected"), "{mended}");
}

#[test]
fn an_answer_that_fits_nowhere_is_an_error_with_its_reason() {
    let small = Upstream::saying(&["no"]);
    let gateway = gateway(&[("auto", vec![small.model("s")])]);
    let mut request = chat("auto");
    request["response_format"] = schema();
    let answer = Client::new(&gateway).ask(&request);
    assert_eq!(answer.refusal(), (502, "output_invalid".to_owned(), Value::Null));
    assert_eq!(answer.headers["x-mainspring-attempts"], "2");
}

#[test]
fn one_request_makes_no_more_calls_than_the_limit() {
    let upstream = Upstream::saying(&["no"]);
    let models = (0..8).map(|idx| upstream.model(&format!("m{idx}"))).collect();
    let gateway = gateway(&[("auto", models)]);
    let mut request = chat("auto");
    request["response_format"] = schema();
    let answer = Client::new(&gateway).ask(&request);
    assert_eq!(answer.refusal().1, "output_invalid");
    assert_eq!((answer.headers["x-mainspring-attempts"].as_str(), upstream.count()), ("12", 12));
}

#[test]
fn an_answer_with_more_tool_calls_than_the_limit_is_mended_or_told() {
    let call = |idx: usize| {
        json!({"id": format!("c{idx}"), "type": "function",
               "function": {"name": "f", "arguments": "{}"}})
    };
    let calls: Vec<_> = (0..129).map(call).collect();
    let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
    let upstream = Upstream::start(move |_, stream| message_answer(stream, &message, "tool_calls"));
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut request = chat("m");
    request["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    let answer = Client::new(&gateway).ask(&request);
    assert_eq!(answer.headers["x-mainspring-problems"], "tool_count");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn an_empty_answer_of_the_small_model_goes_to_the_large_one() {
    let (small, large) = (Upstream::saying(&[""]), Upstream::saying(&["yes"]));
    let gateway = gateway(&[("auto", vec![small.model("s"), large.model("l")])]);
    for stream in [false, true] {
        let mut request = chat("auto");
        request["stream"] = json!(stream);
        let answer = Client::new(&gateway).ask(&request);
        assert_eq!(answer.headers["x-mainspring-model"], "l");
        let text = match stream {
            true => answer.streamed_text(),
            false => answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
        };
        assert_eq!(text, "yes");
    }
}

#[test]
fn a_rejected_stream_of_the_small_model_is_never_seen() {
    let small = Upstream::start(|seen, stream| match seen.body["stream"] == true {
        true => {
            begin_stream(stream);
            send_event(stream, &json!({"choices": [{"index": 0, "delta": {"content": "bad"}}]}));
            let end = json!({"index": 0, "delta": {}, "finish_reason": "length"});
            send_event(stream, &json!({"choices": [end]}));
            let _ = std::io::Write::write_all(stream, b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
        }
        false => respond(stream, "500 Internal Server Error", "", "{}"),
    });
    let large = Upstream::saying(&["good"]);
    let models = vec![small.model("s"), large.model("l")];
    let held = gateway(&[("auto", models.clone())]);
    let mut request = chat("auto");
    request["stream"] = json!(true);
    assert_eq!(Client::new(&held).ask(&request).streamed_text(), "good");
    let at_once = gateway_with(&[("auto", models)], |config| {
        config["routes"][0]["streaming"] = json!("immediate");
    });
    let answer = Client::new(&at_once).ask(&request);
    assert_eq!(answer.streamed_text(), "bad");
    assert!(answer.body.contains("\"finish_reason\":\"length\""), "{}", answer.body);
}

#[test]
fn an_answer_that_ends_at_the_clients_own_limit_counts() {
    let upstream = Upstream::start(|_, stream| {
        message_answer(stream, &json!({"role": "assistant", "content": "cut"}), "length");
    });
    let large = Upstream::saying(&["whole"]);
    let gateway = gateway(&[("auto", vec![upstream.model("s"), large.model("l")])]);
    let mut request = chat("auto");
    request["max_tokens"] = json!(1);
    let answer = Client::new(&gateway).ask(&request).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "cut");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_conversation_stays_with_the_model_that_called_its_tools() {
    let small = Upstream::saying(&[""]);
    let large = Upstream::saying(&["done"]);
    let gateway = gateway(&[("auto", vec![small.model("s"), large.model("l")])]);
    let mut client = Client::new(&gateway);
    assert_eq!(client.ask(&chat("auto")).headers["x-mainspring-model"], "l");
    assert_eq!(small.count(), 1);
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let mut request = chat("auto");
    let messages = request["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
    messages.push(json!({"role": "tool", "tool_call_id": "c", "content": "result"}));
    assert_eq!(client.ask(&request).headers["x-mainspring-attempts"], "1");
    assert_eq!(small.count(), 1);
}

#[test]
fn models_are_listed_and_each_can_be_asked_about() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("b", vec![upstream.model("m")]), ("a", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    let listed = client.get("/v1/models", "").json();
    let names: Vec<_> = listed["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(client.get("/v1/models/a", "").json()["object"], "model");
    let refused = client.get("/v1/models/c", "");
    assert_eq!(refused.refusal(), (404, "model_not_found".to_owned(), json!("model")));
    assert_eq!(client.get("/healthz", "").body, "ok\n");
    assert_eq!(client.ask(&chat("a")).status, 200);
    let metrics = client.get("/metrics", "").body;
    for line in ["model_calls_total 1", "input_tokens_total 10", "cost_usd_total 0.00002"] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[test]
fn every_answer_is_recorded_without_what_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.jsonl");
    let upstream = Upstream::saying(&["a secret answer"]);
    let gateway = gateway_with(&[("auto", vec![upstream.model("m")])], |config| {
        config["record"] = json!(path);
    });
    assert_eq!(Client::new(&gateway).ask(&chat("auto")).status, 200);
    drop(gateway);
    let written = std::fs::read_to_string(path).unwrap();
    let record: Value = serde_json::from_str(written.trim()).unwrap();
    assert_eq!((&record["route"], &record["model"]), (&json!("auto"), &json!("m")));
    assert_eq!(record["attempts"][0]["usage"]["input_tokens"], 10);
    assert_eq!(record["decision"]["propensity"], 1.0);
    assert!(!written.contains("secret") && !written.contains("hello"), "{written}");
    assert!(!written.contains("not-a-real-key"), "{written}");
}
