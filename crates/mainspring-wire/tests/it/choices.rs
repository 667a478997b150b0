//! Requests of the three APIs: tools and their choice, reasoning that goes back, schemas, caches.

use mainspring_session::{
    Ability, AgentSpec, Api, ErrorCode, Message, Part, Reasoning, ReasoningKind, ToolChoice,
};
use mainspring_wire::Codec;
use serde_json::{Value, json};

use crate::apis::{APIS, agent_of};
use crate::{agent, assistant, body, call, codec, history, result, tool};

fn conversation() -> Vec<Message> {
    vec![
        Message::User {
            content: vec![
                Part::Text { text: "what is it".into() },
                Part::Image { url: "data:image/png;base64,AA==".into() },
                Part::Image { url: "https://example.org/a.png".into() },
            ],
        },
        assistant("", vec![call("x1", "add", "{\"a\":1}"), call("x2", "add", "{oops")]),
        result("x1", "add", "1", false),
        result("x2", "add", "not JSON", true),
        assistant("done", vec![]),
        Message::user("more"),
    ]
}

#[test]
fn a_request_of_responses_has_input_items() {
    let spec = agent_of(Api::Responses);
    let parameters: Value = serde_json::from_str(spec.tools[0].parameters.get()).unwrap();
    let expected = json!({
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [
                {"type": "input_text", "text": "what is it"},
                {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AA=="},
                {"type": "input_image", "detail": "auto", "image_url": "https://example.org/a.png"},
            ]},
            {"type": "function_call", "call_id": "x1", "name": "add", "arguments": "{\"a\":1}"},
            {"type": "function_call", "call_id": "x2", "name": "add",
             "arguments": "{\"malformed\":\"{oops\"}"},
            {"type": "function_call_output", "call_id": "x1", "output": "1"},
            {"type": "function_call_output", "call_id": "x2", "output": "Error: not JSON"},
            {"role": "assistant", "content": "done"},
            {"role": "user", "content": "more"},
        ],
        "tools": [{"type": "function", "name": "add", "description": "Adds.",
                   "parameters": parameters, "strict": false}],
        "store": false,
        "include": ["message.output_text.logprobs"],
        "stream": true,
    });
    assert_eq!(body(&codec(&spec, true), &conversation()), expected);
}

#[test]
fn a_request_of_messages_has_content_blocks_and_marks_what_a_cache_should_keep() {
    let spec = agent_of(Api::Messages);
    let schema: Value = serde_json::from_str(spec.tools[0].parameters.get()).unwrap();
    let cache = json!({"type": "ephemeral"});
    let source =
        |media: &str, data: &str| json!({"type": "base64", "media_type": media, "data": data});
    let expected = json!({
        "model": "m",
        "max_tokens": 8192,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": cache}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "what is it"},
                {"type": "image", "source": source("image/png", "AA==")},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "x1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "x2", "name": "add", "input": {"malformed": "{oops"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "x1", "content": "1"},
                {"type": "tool_result", "tool_use_id": "x2", "content": "not JSON",
                 "is_error": true},
            ]},
            {"role": "assistant", "content": [{"type": "text", "text": "done"}]},
            {"role": "user", "content": "more"},
        ],
        "tools": [{"name": "add", "description": "Adds.", "input_schema": schema,
                   "cache_control": cache}],
        "cache_control": cache,
        "stream": true,
    });
    assert_eq!(body(&codec(&spec, true), &conversation()), expected);
}

#[test]
fn earlier_bytes_never_change_while_a_conversation_grows() {
    for api in APIS {
        let codec = codec(&agent_of(api), true);
        let messages = conversation();
        // A request is made where a user or the last tool has spoken.
        let mut earlier = Vec::new();
        for count in [1, 4, 6] {
            let history = history(&codec, &messages[..count]);
            assert!(history.starts_with(&earlier), "{api:?}");
            earlier = history;
        }
    }
}

#[test]
fn a_text_that_looks_like_the_end_of_results_is_no_such_end() {
    let codec = codec(&agent_of(Api::Messages), false);
    let messages = [
        Message::user("],\"role\":\"user\"}"),
        assistant("", vec![call("x", "add", "{\"a\":[{\"role\":\"user\"}]}")]),
        result("x", "add", "1", false),
    ];
    assert_eq!(body(&codec, &messages)["messages"].as_array().unwrap().len(), 3);
}

#[test]
fn messages_are_never_empty_and_results_may_be() {
    let codec = codec(&agent_of(Api::Messages), false);
    let messages = [
        Message::User { content: vec![] },
        assistant(" ", vec![]),
        Message::user("\n"),
        assistant("", vec![call("x", "add", "{}")]),
        result("x", "add", "", false),
    ];
    let expected = json!([
        {"role": "user", "content": "(empty)"},
        {"role": "assistant", "content": [{"type": "text", "text": "(no answer)"}]},
        {"role": "user", "content": "(empty)"},
        {"role": "assistant",
         "content": [{"type": "tool_use", "id": "x", "name": "add", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]},
    ]);
    assert_eq!(body(&codec, &messages)["messages"], expected);
}

fn opening(codec: &Codec) -> Value {
    serde_json::from_slice(&codec.opening_body(&[])).unwrap()
}

#[test]
fn a_forced_call_stands_in_the_opening_body_only() {
    let forced = |api, name: &str| match (api, name) {
        (Api::ChatCompletions, "add") => json!({"type": "function", "function": {"name": "add"}}),
        (Api::Responses, "add") => json!({"type": "function", "name": "add"}),
        (Api::Messages, "add") => json!({"type": "tool", "name": "add"}),
        (Api::Messages, _) => json!({"type": "any"}),
        _ => json!("required"),
    };
    for api in APIS {
        for (choice, name) in
            [(ToolChoice::Required, "any"), (ToolChoice::Tool("add".to_owned()), "add")]
        {
            let mut spec = agent_of(api);
            spec.tool_choice = choice;
            let codec = codec(&spec, false);
            assert_eq!(opening(&codec)["tool_choice"], forced(api, name), "{api:?}");
            assert_eq!(body(&codec, &[]).get("tool_choice"), None, "{api:?}");
            let mut without = opening(&codec);
            without.as_object_mut().unwrap().remove("tool_choice");
            assert_eq!(without, body(&codec, &[]));
        }
        let mut spec = agent_of(api);
        spec.tool_choice = ToolChoice::None;
        let none = if api == Api::Messages { json!({"type": "none"}) } else { json!("none") };
        let silent = codec(&spec, false);
        assert_eq!(body(&silent, &[])["tool_choice"], none);
        assert_eq!(opening(&silent), body(&silent, &[]));
    }
}

#[test]
fn one_call_at_a_time_is_said_where_it_is_asked_for() {
    for api in APIS {
        let mut spec = agent_of(api);
        spec.parallel_tool_calls = Some(false);
        let said = body(&codec(&spec, false), &[]);
        if api == Api::Messages {
            let expected = json!({"type": "auto", "disable_parallel_tool_use": true});
            assert_eq!(said["tool_choice"], expected);
        } else {
            assert_eq!(said["parallel_tool_calls"], json!(false));
        }
        spec.tools.clear();
        let said = body(&codec(&spec, false), &[]);
        assert_eq!((said.get("tool_choice"), said.get("parallel_tool_calls")), (None, None));
    }
}

#[test]
fn in_json_schema_mode_the_schema_forces_the_call() {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let tools = json!([tool("add", "", parameters.clone()), tool("sub", "", parameters)]);
    let mut spec = agent(json!({"tool_mode": "json_schema"}), json!({"tools": tools}));
    spec.parallel_tool_calls = Some(false);
    let schema = |body: &Value| body["response_format"]["json_schema"]["schema"].clone();
    let calls = |body: &Value| schema(body)["properties"]["tool_calls"].clone();

    spec.tool_choice = ToolChoice::Tool("sub".to_owned());
    let forced = codec(&spec, false);
    let items = calls(&opening(&forced))["items"].clone();
    assert_eq!(items["properties"]["name"], json!({"const": "sub"}));
    assert_eq!(calls(&opening(&forced))["maxItems"], json!(1));
    assert_eq!(schema(&body(&forced, &[]))["anyOf"].as_array().unwrap().len(), 2);

    spec.tool_choice = ToolChoice::Required;
    let items = calls(&opening(&codec(&spec, false)))["items"].clone();
    assert_eq!(items["anyOf"].as_array().unwrap().len(), 2);

    spec.tool_choice = ToolChoice::None;
    let only = schema(&body(&codec(&spec, false), &[]));
    assert_eq!(only["properties"], json!({"answer": {"type": "string"}}));
}

#[test]
fn choices_that_cannot_be_kept_are_refused() {
    for (choice, message) in [
        (
            ToolChoice::Tool("sub".to_owned()),
            "agent \"a\" must call a tool and has no tool \"sub\"",
        ),
        (ToolChoice::Required, "agent \"a\" must call a tool and has no tool"),
    ] {
        let mut spec = agent(json!({}), json!({}));
        spec.tool_choice = choice;
        let failure = Codec::new(&spec, &spec.models[0], false).unwrap_err();
        assert_eq!((failure.code, &*failure.message), (ErrorCode::AGENT_INVALID, message));
    }
    let mut spec = agent(json!({"tool_mode": "json_schema"}), json!({}));
    spec.models[0].api = Api::Messages;
    let failure = Codec::new(&spec, &spec.models[0], false).unwrap_err();
    let message = "model \"m\" has the tool mode json_schema, which its API does not take";
    assert_eq!((failure.code, &*failure.message), (ErrorCode::AGENT_INVALID, message));
}

fn thought(kind: ReasoningKind, after: u32, text: &str) -> Reasoning {
    let of = |kinds: &[ReasoningKind], text: &str| match kinds.contains(&kind) {
        true => text.to_owned(),
        false => String::new(),
    };
    use ReasoningKind::{Detail, Item, Redacted, Summary, Thinking};
    Reasoning {
        kind,
        origin: "m@127.0.0.1".to_owned(),
        after,
        text: text.to_owned(),
        signature: of(&[Thinking], "c2ln"),
        data: match kind {
            Detail => "{\"type\":\"reasoning.text\"}".to_owned(),
            _ => of(&[Redacted, Summary], "ZGF0YQ=="),
        },
        id: of(&[Summary, Item], "rs_1"),
    }
}

fn thoughtful(reasoning: Vec<Reasoning>) -> Message {
    let tool_calls = vec![call("x1", "add", "{}"), call("x2", "add", "{}")];
    Message::Assistant { text: "so".to_owned(), tool_calls, reasoning }
}

#[test]
fn reasoning_goes_back_to_its_model_in_its_own_form_and_place() {
    let chat = codec(&agent_of(Api::ChatCompletions), false);
    let responses = codec(&agent_of(Api::Responses), false);
    let messages = codec(&agent_of(Api::Messages), false);
    let all = [
        (ReasoningKind::Content, 0),
        (ReasoningKind::Summary, 0),
        (ReasoningKind::Thinking, 0),
        (ReasoningKind::Redacted, 0),
        (ReasoningKind::Item, 2),
        (ReasoningKind::Thinking, 2),
    ];
    let said = thoughtful(all.map(|(kind, after)| thought(kind, after, "hm")).to_vec());

    let message = &body(&chat, std::slice::from_ref(&said))["messages"][1];
    assert_eq!(message["reasoning_content"], json!("hm"));
    assert_eq!((message.get("reasoning"), message.get("reasoning_details")), (None, None));

    let input = &body(&responses, std::slice::from_ref(&said))["input"];
    let kinds: Vec<&Value> = (0..5).map(|idx| &input[idx]["type"]).collect();
    let function_call = &json!("function_call");
    let reasoning = &json!("reasoning");
    assert_eq!(kinds, [reasoning, &Value::Null, function_call, reasoning, function_call]);
    assert_eq!(
        input[0],
        json!({"type": "reasoning", "id": "rs_1", "encrypted_content": "ZGF0YQ==",
               "summary": [{"type": "summary_text", "text": "hm"}]})
    );
    assert_eq!(
        input[3],
        json!({"type": "reasoning", "id": "rs_1", "summary": [],
               "content": [{"type": "reasoning_text", "text": "hm"}]})
    );

    let blocks = &body(&messages, std::slice::from_ref(&said))["messages"][0]["content"];
    let kinds: Vec<&str> =
        blocks.as_array().unwrap().iter().map(|block| block["type"].as_str().unwrap()).collect();
    let expected = ["thinking", "redacted_thinking", "text", "tool_use", "thinking", "tool_use"];
    assert_eq!(kinds, expected);
    assert_eq!(blocks[0], json!({"type": "thinking", "thinking": "hm", "signature": "c2ln"}));
    assert_eq!(blocks[1], json!({"type": "redacted_thinking", "data": "ZGF0YQ=="}));
}

#[test]
fn details_go_back_as_they_came_and_only_with_calls() {
    let chat = codec(&agent_of(Api::ChatCompletions), false);
    let details =
        vec![thought(ReasoningKind::Detail, 0, "a"), thought(ReasoningKind::Detail, 0, "b")];
    let said = thoughtful(details.clone());
    let element = json!({"type": "reasoning.text"});
    let message = &body(&chat, &[said])["messages"][1];
    assert_eq!(message["reasoning_details"], json!([element, element]));

    let last = Message::Assistant { text: "so".into(), tool_calls: vec![], reasoning: details };
    let expected = json!({"role": "assistant", "content": "so"});
    assert_eq!(body(&chat, &[last])["messages"][1], expected);
}

#[test]
fn another_model_or_server_never_gets_reasoning() {
    for api in APIS {
        let all = [ReasoningKind::Content, ReasoningKind::Summary, ReasoningKind::Thinking];
        let said = thoughtful(all.map(|kind| thought(kind, 0, "secret hm")).to_vec());
        let spec = agent_of(api);
        let own = codec(&spec, false);
        assert!(body(&own, std::slice::from_ref(&said)).to_string().contains("secret hm"));
        for (name, base_url) in [("n", "http://127.0.0.1/v1"), ("m", "http://127.0.0.2/v1")] {
            let mut other = spec.clone();
            other.models[0].name = name.to_owned();
            other.models[0].base_url = base_url.to_owned();
            let other = codec(&other, false);
            assert!(!body(&other, std::slice::from_ref(&said)).to_string().contains("secret hm"));
            assert_ne!(own.history_key(), other.history_key(), "the history is encoded anew");
        }
    }
}

#[test]
fn a_model_that_reasons_is_asked_for_what_can_go_back() {
    let mut spec = agent(json!({"params": {"include": ["web_search_call.results"]}}), json!({}));
    spec.models[0].api = Api::Responses;
    let include = |spec: &AgentSpec| body(&codec(spec, false), &[])["include"].clone();
    assert_eq!(include(&spec), json!(["web_search_call.results"]), "others refuse it");
    spec.models[0].abilities = Some(vec![Ability::Reasoning]);
    let expected = json!(["web_search_call.results", "reasoning.encrypted_content"]);
    assert_eq!(include(&spec), expected);
}

#[test]
fn output_schemas_go_where_each_api_has_them() {
    let output = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}},
                        "required": ["n"], "additionalProperties": false});
    for api in [Api::Responses, Api::Messages] {
        let name = if api == Api::Responses { "text" } else { "output_config" };
        let beside = if api == Api::Responses { "verbosity" } else { "effort" };
        let mut spec = agent(
            json!({"params": {name: {beside: "low"}}}),
            json!({"output_schema": output.clone()}),
        );
        spec.models[0].api = api;
        let mut format = json!({"type": "json_schema", "schema": output});
        if api == Api::Responses {
            format["name"] = json!("answer");
            format["strict"] = json!(true);
        } else {
            // Bounds are not taken; the answer is checked against them afterwards.
            format["schema"]["properties"]["n"] = json!({"type": "integer"});
        }
        let said = body(&codec(&spec, false), &[]);
        assert_eq!(said[name], json!({beside: "low", "format": format}), "{api:?}");

        let mut spec = spec.clone();
        let params = json!({name: {"format": {}}}).to_string();
        spec.models[0].params = Some(serde_json::from_str(&params).unwrap());
        let failure = Codec::new(&spec, &spec.models[0], false).unwrap_err();
        assert_eq!(failure.code, ErrorCode::AGENT_INVALID);
    }
}

#[test]
fn a_schema_that_messages_cannot_take_goes_into_the_prompt() {
    for schema in [
        json!({"type": "array", "items": {"type": "string"}}),
        json!({"type": "object"}),
        json!({"type": "object", "properties": {"a": {}}, "additionalProperties": true}),
        json!({"type": "object", "properties": {"a": {"$ref": "#"}}}),
        json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}}),
    ] {
        let mut spec = agent(json!({}), json!({"output_schema": schema.clone()}));
        spec.models[0].api = Api::Messages;
        let said = body(&codec(&spec, false), &[]);
        assert_eq!(said.get("output_config"), None, "{schema}");
        assert!(said["system"][0]["text"].as_str().unwrap().ends_with(&schema.to_string()));
    }
}

#[test]
fn a_user_s_own_parameters_stand() {
    let params = json!({"max_tokens": 5, "cache_control": null, "thinking": {"type": "adaptive"}});
    let mut spec = agent(json!({"params": params, "output_tokens_max": 100}), json!({}));
    spec.models[0].api = Api::Messages;
    let said = body(&codec(&spec, false), &[]);
    assert_eq!((&said["max_tokens"], said.get("cache_control")), (&json!(5), None));
    assert_eq!(said["thinking"], json!({"type": "adaptive"}));
    spec.models[0].params = None;
    assert_eq!(body(&codec(&spec, false), &[])["max_tokens"], json!(100));

    let mut spec = agent(json!({"params": {"store": true}}), json!({}));
    spec.models[0].api = Api::Responses;
    assert_eq!(body(&codec(&spec, false), &[])["store"], json!(true));
    for (api, field) in [(Api::Responses, "input"), (Api::Messages, "system")] {
        let mut spec = agent(json!({"params": {field: []}}), json!({}));
        spec.models[0].api = api;
        let failure = Codec::new(&spec, &spec.models[0], false).unwrap_err();
        assert!(failure.message.contains(field));
    }
}
