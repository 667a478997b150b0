//! What is refused, and how: bad requests, bad tokens, failing models, too much at once.

use mainspring_server::Gateway;
use serde_json::{Value, json};

use crate::support::{
    Client, Upstream, begin_stream, chat, config, gateway, gateway_with, post, respond, send_event,
    signal,
};

const TOKEN: &str = "0123456789abcdef-a";

#[test]
fn a_bad_request_says_which_field_is_wrong() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    let user = json!({"role": "user", "content": "hi"});
    let with = |name: &str, value: Value| {
        let mut request = chat("m");
        request[name] = value;
        request.to_string()
    };
    let cases = [
        ("{\"model\": \"m\"".to_owned(), Value::Null),
        ("[]".to_owned(), Value::Null),
        ("\"text\"".to_owned(), Value::Null),
        ("{}".to_owned(), json!("model")),
        (with("model", json!(7)), json!("model")),
        (with("messages", json!(null)), json!("messages")),
        (with("messages", json!("hi")), json!("messages")),
        (with("messages", json!([])), json!("messages")),
        (with("messages", json!([7])), json!("messages[0]")),
        (with("messages", json!([{"content": "x"}])), json!("messages[0].role")),
        (with("messages", json!([{"role": "bot", "content": "x"}])), json!("messages[0].role")),
        (with("messages", json!([{"role": "user", "content": 7}])), json!("messages[0].content")),
        (
            with("messages", json!([{"role": "user", "content": [{"type": "input_audio"}]}])),
            json!("messages[0].content[0].type"),
        ),
        (
            with("messages", json!([user, {"role": "tool", "tool_call_id": "c", "content": "x"}])),
            json!("messages[1].tool_call_id"),
        ),
        (
            with("messages", json!([user, {"role": "assistant", "tool_calls": [{"id": 7}]}])),
            json!("messages[1].tool_calls"),
        ),
        (with("stream", json!("yes")), json!("stream")),
        (with("n", json!(2)), json!("n")),
        (with("logprobs", json!(true)), json!("logprobs")),
        (with("max_tokens", json!(0)), json!("max_tokens")),
        (with("max_tokens", json!(-1)), json!("max_tokens")),
        (with("functions", json!([])), json!("functions")),
        (with("tools", json!({})), json!("tools")),
        (with("tools", json!([{"type": "web_search"}])), json!("tools[0].type")),
        (with("tool_choice", json!("required")), json!("tool_choice")),
        (with("tool_choice", json!("sometimes")), json!("tool_choice")),
        (with("response_format", json!({"type": "xml"})), json!("response_format.type")),
        (
            with("response_format", json!({"type": "json_schema"})),
            json!("response_format.json_schema.schema"),
        ),
    ];
    for (body, param) in cases {
        let answer = client.post("", &body).unwrap();
        assert_eq!(answer.refusal(), (400, "invalid_value".to_owned(), param), "{body}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_body_that_is_not_utf8_is_told() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    let mut invalid = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
                       content-type: application/json\r\ncontent-length: 13\r\n\r\n{\"model\":\""
        .to_vec();
    invalid.extend_from_slice(b"\xff\"}");
    client.send(&invalid);
    let answer = client.read().unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("not UTF-8"), "{}", answer.body);
}

#[test]
fn a_bad_schema_and_two_tools_of_one_name_are_refused_before_any_call() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let mut request = chat("m");
    request["tools"] = json!([tool, tool]);
    assert_eq!(client.ask(&request).refusal().0, 400);
    let mut request = chat("m");
    request["response_format"] =
        json!({"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}});
    assert_eq!(client.ask(&request).refusal().0, 400);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn an_unknown_model_is_told_with_the_ones_there_are() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("a", vec![upstream.model("m")]), ("b", vec![upstream.model("m")])]);
    let answer = Client::new(&gateway).ask(&chat("c"));
    assert_eq!(answer.refusal(), (404, "model_not_found".to_owned(), json!("model")));
    assert!(answer.body.contains("allowed: a, b"), "{}", answer.body);
}

#[test]
fn paths_methods_and_content_types_are_checked() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    assert_eq!(client.get("/v2/x", "").refusal().0, 404);
    assert_eq!(client.get("/v1/chat/completions", "").refusal().0, 405);
    client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n\
          content-length: 2\r\n\r\n{}",
    );
    assert_eq!(client.read().unwrap().refusal().0, 415);
    client.send(b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(client.read().unwrap().refusal().0, 405);
}

#[test]
fn only_clients_with_a_token_are_let_in_where_there_are_tokens() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["tokens"] = json!([
            {"token": TOKEN, "tenant": "a"},
            {"token": "fedcba9876543210-b", "tenant": "b"},
        ]);
    });
    let body = chat("m").to_string();
    let mut client = Client::new(&gateway);
    for headers in [
        "",
        "authorization: Bearer\r\n",
        "authorization: Bearer wrong\r\n",
        "authorization: Basic MDEyMzQ1Njc4OWFiY2RlZi1h\r\n",
        "authorization: Bearer 0123456789abcdef-\r\n",
    ] {
        let answer = client.post(headers, &body).unwrap();
        assert_eq!(answer.refusal().0, 401, "{headers}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(!answer.body.contains("0123456789"), "{}", answer.body);
    }
    assert_eq!(client.get("/v1/models", "").status, 401);
    assert_eq!(client.get("/metrics", "").status, 401);
    assert_eq!(client.get("/healthz", "").status, 200);
    for token in [TOKEN, "fedcba9876543210-b"] {
        let headers = format!("authorization: bearer {token}\r\n");
        assert_eq!(client.post(&headers, &body).unwrap().status, 200);
    }
}

#[test]
fn without_tokens_only_names_of_this_machine_are_answered() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    client.send(b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n");
    assert_eq!(client.read().unwrap().refusal().0, 403);
}

#[test]
fn a_configuration_that_is_unsafe_or_wrong_is_refused() {
    let upstream = Upstream::saying(&["x"]);
    let routes = [("m", vec![upstream.model("m")])];
    let refused = |change: &dyn Fn(&mut Value)| {
        Gateway::open(&config(&routes, change)).err().map(|failure| failure.message)
    };
    let open = refused(&|config| config["listen"] = json!("0.0.0.0:0")).unwrap();
    assert!(open.contains("no tokens and listens on 0.0.0.0"), "{open}");
    let short = refused(&|config| config["tokens"] = json!([{"token": "short"}])).unwrap();
    assert_eq!(short, "token 0 has 5 bytes, at least 16 are needed");
    let twice = refused(&|config| {
        config["tokens"] = json!([{"token": TOKEN}, {"token": TOKEN}]);
    });
    assert_eq!(twice.unwrap(), "token 1 is there twice");
    assert!(refused(&|config| config["routes"] = json!([])).is_some());
    let double = refused(&|config| {
        let route = config["routes"][0].clone();
        config["routes"].as_array_mut().unwrap().push(route);
    });
    assert_eq!(double.unwrap(), "two routes are named \"m\"");
    assert!(refused(&|config| config["routes"][0]["weights"] = json!("/nowhere.json")).is_some());
    let policy = refused(&|config| config["routes"][0]["policy"] = json!({"explore": 2.0}));
    assert!(policy.unwrap().contains("explore is 2"));
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap();
    assert!(refused(&|config| config["listen"] = json!(address)).is_some());
}

#[test]
fn what_fails_upstream_has_the_status_that_fits() {
    let upstream = Upstream::start(|seen, stream| {
        let status = seen.body["user"].as_str().unwrap().to_owned();
        let body = json!({"error": {"message": "no: not-a-real-key-1234"}}).to_string();
        let headers = if status.starts_with("429") { "retry-after: 700\r\n" } else { "" };
        respond(stream, &status, headers, &body);
    });
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut client = Client::new(&gateway);
    for (upstream_status, status, code) in [
        ("400 Bad Request", 400, "model_bad_request"),
        ("401 Unauthorized", 502, "model_auth"),
        ("404 Not Found", 502, "model_not_found"),
        ("429 Too Many Requests", 429, "model_rate_limited"),
    ] {
        // A server that asks for so much patience is not asked again.
        let ways: &[bool] = if status == 429 { &[false] } else { &[false, true] };
        for &stream in ways {
            let mut request = chat("m");
            request["user"] = json!(upstream_status);
            request["stream"] = json!(stream);
            let answer = client.ask(&request);
            assert_eq!(answer.refusal(), (status, code.to_owned(), Value::Null));
            assert!(!answer.body.contains("not-a-real-key"), "{}", answer.body);
            let retry_after = answer.headers.get("retry-after").map(String::as_str);
            assert_eq!(retry_after, (status == 429).then_some("700"));
        }
    }
    assert_eq!(client.ask(&chat("m")).refusal().1, "model_unavailable");
}

#[test]
fn another_model_is_asked_where_one_refuses() {
    let large = Upstream::saying(&["large"]);
    let refused = Upstream::start(|_, stream| {
        respond(stream, "401 Unauthorized", "", "{}");
    });
    let gateway = gateway(&[("auto", vec![refused.model("s"), large.model("l")])]);
    let answer = Client::new(&gateway).ask(&chat("auto"));
    assert_eq!(answer.headers["x-mainspring-model"], "l");
    assert_eq!(answer.headers["x-mainspring-attempts"], "2");
}

#[test]
fn a_model_that_is_too_slow_is_a_gateway_timeout() {
    let (release, released) = signal();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::start(move |_, _| {
        let _ = released.lock().unwrap().recv();
    });
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["limits"] = json!({"request_ms_max": 20});
    });
    let answer = Client::new(&gateway).ask(&chat("m"));
    assert_eq!(answer.refusal(), (504, "model_timeout".to_owned(), Value::Null));
    drop(release);
}

#[test]
fn a_stream_that_breaks_ends_with_an_error_event_and_without_done() {
    let (release, released) = signal();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::start(move |_, stream| {
        begin_stream(stream);
        send_event(stream, &json!({"choices": [{"index": 0, "delta": {"content": "half"}}]}));
        released.lock().unwrap().recv().unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let gateway = gateway(&[("m", vec![upstream.model("m")])]);
    let mut request = chat("m");
    request["stream"] = json!(true);
    let mut client = Client::new(&gateway);
    client.send(post("", &request.to_string()).as_bytes());
    while !client.line().contains("half") {}
    release.send(()).unwrap();
    let mut rest = String::new();
    while !rest.ends_with("\n0\r\n") {
        rest.push_str(&client.line());
    }
    let error = rest.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!(error["error"]["code"], "model_interrupted");
    assert!(!rest.contains("[DONE]"), "{rest}");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_tenant_gets_no_more_calls_than_its_budget_allows() {
    let upstream = Upstream::saying(&["x"]);
    let gateway = gateway_with(&[("m", vec![upstream.model("m")])], |config| {
        config["tokens"] = json!([
            {"token": TOKEN, "tenant": "poor"},
            {"token": "fedcba9876543210-b", "tenant": "rich"},
        ]);
        config["budgets"] = json!({"poor": {"calls": 1}});
    });
    let body = chat("m").to_string();
    let mut client = Client::new(&gateway);
    let headers = format!("authorization: Bearer {TOKEN}\r\n");
    assert_eq!(client.post(&headers, &body).unwrap().status, 200);
    let answer = client.post(&headers, &body).unwrap();
    assert_eq!(answer.refusal(), (429, "budget_exhausted".to_owned(), Value::Null));
    assert_eq!(answer.headers["x-should-retry"], "false");
    assert_eq!(answer.headers["retry-after"], "60");
    let headers = "authorization: Bearer fedcba9876543210-b\r\n";
    assert_eq!(client.post(headers, &body).unwrap().status, 200);
    assert_eq!(upstream.count(), 2);
}
