//! What the three APIs have in common: the same recorded answers, whole and streamed, are the same
//! neutral answers.

use mainspring_session::{
    AgentSpec, Api, Effect, ErrorCode, Failure, FinishReason, Reasoning, ReasoningKind, Usage,
};
use mainspring_wire::{Codec, Decoded};
use serde_json::json;

use crate::corpus::{sample, samples};
use crate::{IDS, agent, call, codec, tool};

pub(crate) const APIS: [Api; 3] = [Api::ChatCompletions, Api::Responses, Api::Messages];

/// An agent with the tool `add` whose model speaks an API.
pub(crate) fn agent_of(api: Api) -> AgentSpec {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let tools = json!({"tools": [tool("add", "Adds.", parameters)]});
    let mut spec = agent(json!({"logprobs": api != Api::Messages}), tools);
    spec.models[0].api = api;
    spec.tools[0].effect = Effect::Read;
    spec
}

pub(crate) fn codec_of(api: Api) -> Codec {
    codec(&agent_of(api), true)
}

fn decode(api: Api, name: &str) -> Result<Decoded, Failure> {
    let sample = sample(api, name);
    let codec = codec_of(api);
    if !sample.is_stream {
        return codec.decode(sample.bytes, IDS);
    }
    let mut decoder = codec.stream(IDS);
    decoder.push(sample.bytes, &mut |_| {})?;
    decoder.finish()
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let mut count = 0;
    for sample in samples() {
        let Some(name) = sample.name.strip_suffix(".json") else { continue };
        let streamed = decode(sample.api, &format!("{name}.sse"));
        assert_eq!(streamed, decode(sample.api, sample.name), "{:?} {name}", sample.api);
        count += 1;
    }
    assert_eq!(count, 18);
}

#[test]
fn every_api_says_the_same_in_its_own_words() {
    for (api, reasoning_tokens) in
        [(Api::ChatCompletions, 3), (Api::Responses, 3), (Api::Messages, 0)]
    {
        let text = decode(api, "text.json").unwrap();
        assert_eq!(text.answer.text, "Grüße 🎉: \"it\" is\n5", "{api:?}");
        assert_eq!(text.finish_reason, FinishReason::Stop);
        let usage = Usage {
            input_tokens: 20,
            output_tokens: 9,
            cached_tokens: 8,
            cache_write_tokens: 4,
            reasoning_tokens,
        };
        assert_eq!(text.usage, usage, "{api:?}");

        let tools = decode(api, "tools.json").unwrap();
        let prefix = if api == Api::Messages { "toolu" } else { "call" };
        let expected = [("0", "{\"a\": 1}"), ("1", "{\"a\": 2, \"b\": 3}")]
            .map(|(idx, arguments)| call(&format!("{prefix}_{idx}"), "add", arguments));
        assert_eq!(tools.answer.tool_calls, expected);
        assert_eq!(tools.finish_reason, FinishReason::ToolCalls);

        let refusal = decode(api, "refusal.json").unwrap();
        assert_eq!(refusal.finish_reason, FinishReason::ContentFilter, "{api:?}");
        assert_eq!(refusal.answer.text, "I cannot do that.");
    }
    for (api, name) in [(Api::Responses, "incomplete.sse"), (Api::Messages, "length.sse")] {
        assert_eq!(decode(api, name).unwrap().finish_reason, FinishReason::Length);
    }
}

#[test]
fn reasoning_is_kept_in_the_form_in_which_it_can_go_back() {
    let piece = |kind, text: &str| Reasoning {
        kind,
        origin: "m@127.0.0.1".to_owned(),
        after: 0,
        text: text.to_owned(),
        signature: String::new(),
        data: String::new(),
        id: String::new(),
    };
    let both = "First add.\nThen add.";
    let kept = |api, name| decode(api, name).unwrap().answer.reasoning;
    assert_eq!(kept(Api::ChatCompletions, "reasoning.json"), [piece(ReasoningKind::Content, both)]);
    let detail = |text: &str, data: &str| Reasoning {
        data: data.to_owned(),
        ..piece(ReasoningKind::Detail, text)
    };
    assert_eq!(
        kept(Api::ChatCompletions, "details.json"),
        [
            detail(
                "First add.",
                "{\"format\":\"anthropic-claude-v1\",\"index\":0,\"signature\":\"c2ln\",\
                 \"text\":\"First add.\",\"type\":\"reasoning.text\"}"
            ),
            detail(
                "",
                "{\"data\":\"ZW5j\",\"format\":\"openai-responses-v1\",\"id\":\"r1\",\
                 \"index\":1,\"type\":\"reasoning.encrypted\"}"
            ),
        ]
    );
    let item = Reasoning {
        data: "ZW5jcnlwdGVk".to_owned(),
        id: "rs_1".to_owned(),
        ..piece(ReasoningKind::Summary, both)
    };
    assert_eq!(kept(Api::Responses, "reasoning.json"), [item]);
    let thinking =
        Reasoning { signature: "c2lnbmF0dXJl".to_owned(), ..piece(ReasoningKind::Thinking, both) };
    let redacted =
        Reasoning { data: "cmVkYWN0ZWQ=".to_owned(), ..piece(ReasoningKind::Redacted, "") };
    assert_eq!(kept(Api::Messages, "reasoning.json"), [thinking, redacted]);
}

#[test]
fn errors_inside_answers_are_those_errors() {
    for (api, name, code) in [
        (Api::ChatCompletions, "error.sse", ErrorCode::MODEL_SERVER_ERROR),
        (Api::Responses, "error.sse", ErrorCode::MODEL_SERVER_ERROR),
        (Api::Responses, "failed.json", ErrorCode::MODEL_RATE_LIMITED),
        (Api::Responses, "failed.sse", ErrorCode::MODEL_RATE_LIMITED),
        (Api::Messages, "error.sse", ErrorCode::MODEL_SERVER_ERROR),
    ] {
        let failure = decode(api, name).unwrap_err();
        assert_eq!((failure.code, failure.retryable), (code, true), "{api:?} {name}");
    }
}

#[test]
fn a_stream_that_stops_early_was_interrupted_and_garbage_is_a_bad_response() {
    for api in APIS {
        let whole = sample(api, "tools.sse").bytes;
        let marks: &[&[u8]] = match api {
            Api::ChatCompletions => &[b"\"finish_reason\":\"tool_calls\"", b"[DONE]"],
            Api::Responses => &[b"event: response.completed"],
            _ => &[b"event: message_stop"],
        };
        let end = whole.windows(marks[0].len()).position(|part| part == marks[0]).unwrap();
        for cut in [whole.len() / 2, end - 1] {
            let mut decoder = codec_of(api).stream(IDS);
            decoder.push(&whole[..cut], &mut |_| {}).unwrap();
            assert!(!decoder.is_done());
            assert_eq!(decoder.finish().unwrap_err().code, ErrorCode::MODEL_INTERRUPTED, "{api:?}");
        }
        let bad: [&[u8]; 4] =
            [b"{oops", b"[]", b"{}", b"{\"choices\":[{\"message\":{\"content\":\"\xff\"}}]}"];
        for body in bad {
            let failure = codec_of(api).decode(body, IDS).unwrap_err();
            assert_eq!(failure.code, ErrorCode::MODEL_BAD_RESPONSE, "{api:?}");
            assert!(failure.hint.is_some());
        }
        let event: &[u8] = match api {
            Api::ChatCompletions => b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\"}}]}\n\n",
            _ => b"data: {\"type\":\"\xff\"}\n\n",
        };
        let failure = codec_of(api).stream(IDS).push(event, &mut |_| {}).unwrap_err();
        assert_eq!(failure.code, ErrorCode::MODEL_BAD_RESPONSE, "{api:?}");
    }
}

#[test]
fn the_mean_of_log_probabilities_is_noted() {
    for api in [Api::ChatCompletions, Api::Responses] {
        for name in ["logprobs.json", "logprobs.sse"] {
            assert_eq!(decode(api, name).unwrap().notes.logprob_mean, Some(-1.0), "{api:?} {name}");
        }
        assert_eq!(decode(api, "text.json").unwrap().notes.logprob_mean, None);
        let spec = agent(json!({}), json!({}));
        let silent = codec(&spec, false);
        let sample = sample(Api::ChatCompletions, "logprobs.json");
        assert_eq!(silent.decode(sample.bytes, IDS).unwrap().notes.logprob_mean, None);
    }
}

#[test]
fn of_an_answer_that_calls_tools_the_tokens_of_its_arguments_count() {
    let token = |text: &str, logprob: f64| json!({"token": text, "logprob": logprob});
    let answer = |content: &str, tokens: Vec<serde_json::Value>| {
        json!({"choices": [{"message": {"content": content}, "finish_reason": "stop",
                            "logprobs": {"content": tokens}}]})
        .to_string()
    };
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let spec = agent(
        json!({"tool_mode": "json_schema", "logprobs": true}),
        json!({"tools": [tool("add", "", parameters)]}),
    );
    let envelope = "{\"tool_calls\":[{\"name\":\"add\",\"arguments\":{\"a\":12}}]}";
    let tokens = vec![
        token("{\"tool_calls\":[{\"name\":\"add\",\"arguments\":", -9.0),
        token("{\"a\":", -0.25),
        token("1", -0.5),
        token("2}}]}", -0.75),
    ];
    let decoded = codec(&spec, false).decode(answer(envelope, tokens).as_bytes(), IDS).unwrap();
    assert_eq!(decoded.answer.tool_calls, [call("c7", "add", "{\"a\":12}")]);
    assert_eq!(decoded.notes.logprob_mean, Some(-0.5));

    // What is no log-probability is not counted, and none is below the bound.
    let odd = vec![
        token("a", -9999.0),
        json!({"token": "b", "logprob": null}),
        json!({"token": "c", "logprob": "x"}),
    ];
    let plain = agent(json!({"logprobs": true}), json!({}));
    let decode = |tokens| codec(&plain, false).decode(answer("abc", tokens).as_bytes(), IDS);
    assert_eq!(decode(odd).unwrap().notes.logprob_mean, None, "an array that cannot be read");
    let odd = vec![token("a", -9999.0), json!({"token": "b", "logprob": null})];
    assert_eq!(decode(odd).unwrap().notes.logprob_mean, Some(-100.0));
}
