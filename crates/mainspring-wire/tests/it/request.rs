//! Request bodies, compared whole.

use mainspring_session::{AgentSpec, ErrorCode, Message, Part};
use mainspring_wire::Codec;
use serde_json::json;
use serde_json::value::RawValue;

use crate::{agent, assistant, body, call, codec, history, result, tool};

fn conversation() -> Vec<Message> {
    vec![
        Message::user("say \"hi\"\n"),
        assistant("", vec![call("x1", "add", "{\"a\":1}"), call("x2", "add", "{oops")]),
        result("x1", "add", "1", false),
        result("x2", "add", "arguments are not JSON", true),
        assistant("done", vec![]),
    ]
}

#[test]
fn a_native_request_has_the_provider_s_own_form() {
    let parameters = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let spec = agent(
        json!({"params": {"temperature": 0.5, "max_tokens": 10}}),
        json!({"tools": [tool("add", "Adds.", parameters.clone()), tool("nop", "", json!({}))]}),
    );
    let expected = json!({
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "say \"hi\"\n"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "x1", "type": "function",
                 "function": {"name": "add", "arguments": "{\"a\":1}"}},
                {"id": "x2", "type": "function",
                 "function": {"name": "add", "arguments": "{\"malformed\":\"{oops\"}"}},
            ]},
            {"role": "tool", "tool_call_id": "x1", "content": "1"},
            {"role": "tool", "tool_call_id": "x2", "content": "Error: arguments are not JSON"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": [
            {"type": "function",
             "function": {"name": "add", "description": "Adds.", "parameters": parameters}},
            {"type": "function", "function": {"name": "nop", "parameters": {}}},
        ],
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": 0.5,
        "max_tokens": 10,
    });
    assert_eq!(body(&codec(&spec, true), &conversation()), expected);

    let mut whole = expected;
    whole.as_object_mut().unwrap().remove("stream");
    whole.as_object_mut().unwrap().remove("stream_options");
    assert_eq!(body(&codec(&spec, false), &conversation()), whole);
}

#[test]
fn without_instructions_there_is_no_system_message_and_pictures_are_parts() {
    let spec = agent(json!({}), json!({"instructions": ""}));
    let content = vec![
        Part::Text { text: "what is it".into() },
        Part::Image { url: "data:image/png;base64,AA==".into() },
    ];
    let messages = [Message::User { content }, Message::User { content: vec![] }];
    let expected = json!({"model": "m", "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "what is it"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        ]},
        {"role": "user", "content": ""},
    ]});
    assert_eq!(body(&codec(&spec, false), &messages), expected);
    assert_eq!(body(&codec(&spec, false), &[]), json!({"model": "m", "messages": []}));
}

#[test]
fn an_output_schema_is_a_response_format_and_strict_only_where_it_qualifies() {
    let closed = json!({"type": "object", "properties": {"n": {"type": "integer"}},
                        "required": ["n"], "additionalProperties": false});
    let open = json!({"type": "object", "properties": {"n": {"type": "integer", "default": 1}}});
    let optional = json!({"type": "object", "properties": {"n": {"type": "integer"}},
                          "additionalProperties": false});
    let root_list = json!({"type": "array", "items": {"type": "string"}});
    for (schema, strict) in [(closed, true), (open, false), (optional, false), (root_list, false)] {
        let spec = agent(json!({}), json!({"output_schema": schema}));
        let expected = json!({"type": "json_schema", "json_schema":
            {"name": "answer", "schema": schema, "strict": strict}});
        assert_eq!(body(&codec(&spec, false), &[])["response_format"], expected);
    }
}

#[test]
fn an_output_schema_goes_into_the_prompt_where_there_is_no_response_format() {
    let spec = agent(json!({"output_mode": "prompt"}), json!({"output_schema": {"type": "null"}}));
    let expected = json!({"model": "m", "messages": [{"role": "system", "content":
        "Be brief.\n\nGive the final answer as one JSON value that fits this JSON Schema, and \
         nothing else:\n{\"type\":\"null\"}"}]});
    assert_eq!(body(&codec(&spec, false), &[]), expected);
}

/// The agent of the constrained requests below. Its schemas are text, because their order counts.
fn search_agent() -> AgentSpec {
    let search = r##"{"title": "Search", "type": "object",
        "properties": {
            "query": {"type": "string", "title": "Query", "examples": ["x"], "minLength": 1},
            "kind": {"$ref": "#/$defs/Kind"},
            "limit": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
                      "default": null},
            "tree": {"$ref": "#/$defs/Tree"}},
        "required": ["query", "kind", "gone"],
        "$defs": {
            "Kind": {"enum": ["file", "line"], "type": "string", "title": "Kind"},
            "Tree": {"type": "object", "properties":
                {"children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}}}"##;
    let add = r#"{"type": "object", "properties": {"b": {"type": "number"},
                  "a": {"type": "number"}}, "required": ["b", "a"]}"#;
    let tools =
        [tool("search", "Finds text. Slowly.\n\nMore.", json!({})), tool("add", "", json!({}))];
    let limits = json!({"tool_calls_per_step_max": 4});
    let mut spec =
        agent(json!({"tool_mode": "json_schema"}), json!({"tools": tools, "limits": limits}));
    for (tool, schema) in spec.tools.iter_mut().zip([search, add]) {
        tool.parameters = RawValue::from_string(schema.to_owned()).unwrap();
    }
    spec
}

#[test]
fn json_schema_mode_holds_the_answer_to_calls_or_an_answer() {
    let spec = search_agent();
    let raw = codec(&spec, false).body(&[]);
    // Field order matters to a grammar, so the format is compared as text.
    let format = String::from_utf8(raw).unwrap();
    let format = format.split_once("\"response_format\":").unwrap().1;
    let arguments = concat!(
        r#"{"type":"object","properties":{"query":{"type":"string"},"kind":{"enum":["file","line"]},"#,
        r#""limit":{"anyOf":[{"type":"integer","minimum":1},{"type":"null"}]},"#,
        r#""tree":{"type":"object","properties":{"children":{"type":"array","items":{}}},"#,
        r#""additionalProperties":false}},"required":["query","kind"],"additionalProperties":false}"#,
    );
    let expected = [
        r#"{"type":"json_schema","json_schema":{"name":"answer","schema":{"anyOf":[{"type":"object","#,
        r#""properties":{"tool_calls":{"type":"array","items":{"anyOf":["#,
        r#"{"type":"object","properties":{"name":{"const":"search"},"arguments":"#,
        arguments,
        r#"},"required":["name","arguments"],"additionalProperties":false},"#,
        r#"{"type":"object","properties":{"name":{"const":"add"},"arguments":{"type":"object","#,
        r#""properties":{"b":{"type":"number"},"a":{"type":"number"}},"required":["b","a"],"#,
        r#""additionalProperties":false}},"required":["name","arguments"],"#,
        r#""additionalProperties":false}]},"minItems":1,"maxItems":4}},"#,
        r#""required":["tool_calls"],"additionalProperties":false},"#,
        r#"{"type":"object","properties":{"answer":{"type":"string"}},"required":["answer"],"#,
        r#""additionalProperties":false}]},"strict":true}}}"#,
    ];
    assert_eq!(format, expected.concat());
}

#[test]
fn json_schema_mode_speaks_of_tools_and_results_in_text() {
    let spec = search_agent();
    let mut body = body(&codec(&spec, false), &conversation());
    body.as_object_mut().unwrap().remove("response_format");
    let system = "Be brief.\n\n\
        Tools:\n\
        search(query: string, kind: \"file\"|\"line\", limit?: integer|null, \
        tree?: {children?: any[]}): Finds text.\n\
        add(b: number, a: number)\n\
        Reply with JSON on one line. To use tools, several at once if they are independent: \
        {\"tool_calls\":[{\"name\":\"...\",\"arguments\":{...}}]}\n\
        When the results are enough: {\"answer\":\"...\"}";
    let expected = json!({"model": "m", "messages": [
        {"role": "system", "content": system},
        {"role": "user", "content": "say \"hi\"\n"},
        {"role": "assistant", "content": "{\"tool_calls\":[{\"name\":\"add\",\
            \"arguments\":{\"a\":1}},{\"name\":\"add\",\"arguments\":{\"malformed\":\"{oops\"}}]}"},
        {"role": "user", "content":
            "Result of add: 1\nResult of add: Error: arguments are not JSON"},
        {"role": "assistant", "content": "{\"answer\":\"done\"}"},
    ]});
    assert_eq!(body, expected);
}

#[test]
fn a_typed_answer_in_json_schema_mode_stands_as_a_value() {
    let output = json!({"type": "object", "properties": {"n": {"type": "integer"}},
                        "required": ["n"]});
    let spec = agent(json!({"tool_mode": "json_schema"}), json!({"output_schema": output}));
    let messages =
        [Message::user("go"), assistant("{\"n\":1}", vec![]), assistant("no value", vec![])];
    let body = body(&codec(&spec, false), &messages);
    assert_eq!(
        body["messages"][0]["content"],
        "Be brief.\n\nReply with JSON on one line: {\"answer\":{n: integer}}"
    );
    assert_eq!(body["messages"][2]["content"], "{\"answer\":{\"n\":1}}");
    assert_eq!(body["messages"][3]["content"], "{\"answer\":\"no value\"}");
    let schema = &body["response_format"]["json_schema"]["schema"];
    assert_eq!(
        *schema,
        json!({
            "type": "object",
            "properties": {"answer": {"type": "object", "properties": {"n": {"type": "integer"}},
                                      "required": ["n"], "additionalProperties": false}},
            "required": ["answer"], "additionalProperties": false,
        })
    );
}

#[test]
fn json_schema_mode_without_tools_and_schema_is_plain_chat() {
    let plain = agent(json!({"tool_mode": "json_schema"}), json!({}));
    let native = agent(json!({}), json!({}));
    let (plain, native) = (codec(&plain, false), codec(&native, false));
    assert_eq!(body(&plain, &conversation()), body(&native, &conversation()));
    assert_eq!(plain.history_key(), native.history_key());
}

#[test]
fn histories_grow_without_a_change_to_what_was_there_and_equal_keys_encode_equally() {
    let native = crate::native();
    let mut earlier = Vec::new();
    for count in 0..=5 {
        let history = history(&native, &conversation()[..count]);
        assert!(history.starts_with(&earlier));
        earlier = history;
    }
    assert_ne!(native.history_key(), crate::constrained().history_key());

    // A user's text that ends like a message of results is still its own message.
    let constrained = crate::constrained();
    let messages = [Message::user("\",\"role\":\"user\"}"), result("x", "add", "1", false)];
    assert_eq!(body(&constrained, &messages)["messages"].as_array().unwrap().len(), 3);
}

#[test]
fn deep_and_recursive_schemas_stay_small() {
    // Each level refers twice to the next: inlined in full, 2^30 nodes.
    let mut defs = serde_json::Map::new();
    for level in 0..30 {
        let next = json!({"$ref": format!("#/$defs/L{}", level + 1)});
        let level_schema = json!({"type": "object", "properties": {"x": next, "y": next}});
        defs.insert(format!("L{level}"), level_schema);
    }
    let parameters = json!({"type": "object", "properties": {"root": {"$ref": "#/$defs/L0"}},
                            "$defs": defs});
    let tools = json!({"tools": [tool("t", "", parameters)]});
    let spec = agent(json!({"tool_mode": "json_schema"}), tools);
    assert!(codec(&spec, false).body(&[]).len() < 1_000_000);
}

#[test]
fn parameters_that_the_codec_sets_itself_are_refused() {
    for (params, message) in [
        (
            json!({"messages": []}),
            "params of model \"m\" set \"messages\", which the engine sets itself",
        ),
        (
            json!({"stream": true}),
            "params of model \"m\" set \"stream\", which the engine sets itself",
        ),
        (json!([1]), "params of model \"m\" are [1], not a JSON object"),
    ] {
        let spec = agent(json!({"params": params}), json!({}));
        let failure = Codec::new(&spec, &spec.models[0], false).unwrap_err();
        assert_eq!((failure.code, &*failure.message), (ErrorCode::AGENT_INVALID, message));
        assert!(failure.hint.is_some());
    }
    let spec = agent(
        json!({"params": {"response_format": {}}}),
        json!({"output_schema": {"type": "object"}}),
    );
    assert!(Codec::new(&spec, &spec.models[0], false).is_err());
    let spec =
        agent(json!({"tool_mode": "json_schema"}), json!({"tools": [tool("t", "", json!(5))]}));
    let failure = Codec::new(&spec, &spec.models[0], false).unwrap_err();
    assert_eq!(failure.message, "schema of tool \"t\" is 5, not a JSON object");
}

#[test]
fn stream_options_can_be_replaced_or_left_out() {
    for (options, expected) in [(json!(null), None), (json!({"x": 1}), Some(json!({"x": 1})))] {
        let spec = agent(json!({"params": {"stream_options": options}}), json!({}));
        assert_eq!(body(&codec(&spec, true), &[]).get("stream_options").cloned(), expected);
    }
}
