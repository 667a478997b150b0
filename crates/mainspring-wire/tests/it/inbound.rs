//! Requests of clients: what is taken apart, what is passed on, what is refused.

use mainspring_session::{Message, Part, ToolChoice};
use mainspring_wire::{ChatRequest, INBOUND_MESSAGES_MAX, INBOUND_TOOLS_MAX};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{assistant, call, result};

fn parse(request: &Value) -> ChatRequest {
    ChatRequest::parse(request.to_string().as_bytes()).unwrap()
}

fn with(name: &str, value: Value) -> Value {
    let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    request[name] = value;
    request
}

fn refused(request: &Value) -> (String, Option<String>) {
    let error = ChatRequest::parse(request.to_string().as_bytes()).unwrap_err();
    (error.message, error.param)
}

#[test]
fn messages_become_the_neutral_conversation() {
    let image = json!({"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}});
    let asked = json!({"id": "c1", "type": "function",
                       "function": {"name": "add", "arguments": "{\"a\":1}"}});
    let request = parse(&with(
        "messages",
        json!([
            {"role": "system", "content": "One."},
            {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "see"}, image]},
            {"role": "assistant", "content": null, "tool_calls": [asked], "audio": null},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "content": null, "refusal": "no"},
            {"role": "system", "content": "Three."},
            {"role": "user", "content": "and?"},
        ]),
    ));
    assert_eq!(request.instructions, "One.\n\nTwo.\n\nThree.");
    let seen = vec![Part::Text { text: "see".into() }, Part::Image { url: "data:x".into() }];
    assert_eq!(
        request.messages,
        [
            Message::User { content: seen },
            assistant("", vec![call("c1", "add", "{\"a\":1}")]),
            result("c1", "add", "2", false),
            assistant("no", vec![]),
            Message::user("and?"),
        ]
    );
}

#[test]
fn known_fields_are_read_and_all_others_are_kept() {
    let tools = json!([{"type": "function", "function": {"name": "add", "description": "Adds.",
        "parameters": {"type": "object", "properties": {}}, "strict": true}},
        {"type": "function", "function": {"name": "now"}}]);
    let request = parse(&json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": "now"}},
        "parallel_tool_calls": false, "max_completion_tokens": 9, "stream": true,
        "stream_options": {"include_usage": true}, "n": 1, "logprobs": false, "store": true,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true,
            "schema": {"type": "object"}}},
        "temperature": 0.50, "stop": ["a"], "user": null, "vendor_field": {"deep": [1]},
    }));
    assert_eq!(request.tools.len(), 2);
    assert_eq!(
        (request.tools[0].name.as_str(), request.tools[0].description.as_str()),
        ("add", "Adds.")
    );
    assert_eq!(request.tools[1].parameters.get(), "{\"type\":\"object\",\"properties\":{}}");
    assert_eq!(request.tool_choice, ToolChoice::Tool("now".to_owned()));
    assert_eq!(request.parallel_tool_calls, Some(false));
    assert_eq!(request.output_tokens_max, Some(9));
    assert!(request.stream && request.include_usage);
    assert_eq!(request.output_schema.unwrap().get(), "{\"type\":\"object\"}");
    let params: Value = serde_json::from_str(request.params.unwrap().get()).unwrap();
    assert_eq!(params, json!({"temperature": 0.5, "stop": ["a"], "vendor_field": {"deep": [1]}}));
    assert_eq!(parse(&with("tool_choice", json!("none"))).tool_choice, ToolChoice::None);
    let object = parse(&with("response_format", json!({"type": "json_object"})));
    assert!(object.output_schema.is_none());
    assert_eq!(object.params.unwrap().get(), "{\"response_format\":{\"type\":\"json_object\"}}");
    let text = parse(&with("response_format", json!({"type": "text"})));
    assert!(text.output_schema.is_none() && text.params.is_none());
}

#[test]
fn a_lone_system_message_is_what_the_user_says() {
    let request = parse(&with("messages", json!([{"role": "system", "content": "Say hi."}])));
    assert_eq!(request.messages, [Message::user("Say hi.")]);
    assert_eq!(request.instructions, "");
}

#[test]
fn refusals_name_the_field_and_what_is_allowed() {
    let long = "x".repeat(500);
    let cases = [
        (with("model", json!(7)), "\"model\" is 7, must be text", Some("model")),
        (
            with("stream", json!("yes")),
            "\"stream\" is \"yes\", must be true or false",
            Some("stream"),
        ),
        (with("n", json!(3)), "\"n\" is 3, only 1 answer is given", Some("n")),
        (
            with("messages", json!([{"role": long}])),
            &format!(
                "role of messages[0] is {}..., allowed are system, developer, user, assistant, tool",
                &long[..60]
            ),
            Some("messages[0].role"),
        ),
        (
            with(
                "messages",
                json!([{"role": "system", "content": [
                {"type": "image_url", "image_url": {"url": "x"}}]}]),
            ),
            "messages[0].content holds an image, only users can show one",
            Some("messages[0].content"),
        ),
        (
            with("tool_choice", json!("required")),
            "\"tool_choice\" is \"required\", but there are no \"tools\"",
            Some("tool_choice"),
        ),
    ];
    for (request, message, param) in cases {
        assert_eq!(refused(&request), (message.to_owned(), param.map(str::to_owned)));
    }
    let not_utf8 = ChatRequest::parse(b"{\"model\": \"\xff\"}").unwrap_err();
    assert_eq!(not_utf8.message, "the body is not UTF-8 from byte 11 on");
}

#[test]
fn messages_and_tools_have_limits() {
    let user = json!({"role": "user", "content": "x"});
    let many = with("messages", json!(vec![user; INBOUND_MESSAGES_MAX + 1]));
    assert!(refused(&many).0.contains("limit 20000"), "{}", refused(&many).0);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let many = with("tools", json!(vec![tool; INBOUND_TOOLS_MAX + 1]));
    assert!(refused(&many).0.contains("limit 4096"));
}

#[test]
fn deep_nesting_is_refused_or_passed_on_and_never_overflows() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        format!("{{\"model\":\"m\",\"messages\":{deep}}}"),
        format!("{{\"model\":\"m\",\"tools\":{deep},\"messages\":[]}}"),
        deep,
    ] {
        assert!(ChatRequest::parse(body.as_bytes()).is_err());
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = ChatRequest::parse(&bytes);
    }

    #[test]
    fn no_text_in_any_field_panics(field in "(messages|tools|tool_choice|response_format|stream_options|max_tokens)", text in "\\PC{0,40}") {
        let body = format!("{{\"model\":\"m\",\"{field}\":{text}}}");
        let _ = ChatRequest::parse(body.as_bytes());
        let request = with(&field, json!(text));
        let _ = ChatRequest::parse(request.to_string().as_bytes());
    }
}
