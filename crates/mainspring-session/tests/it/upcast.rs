//! Events of older formats, through planted steps: which are taken, in which order, and what is
//! left alone.

use mainspring_session::{Event, SCHEMA_VERSION, UPCAST_STEPS, Upcast, read_with};
use serde_json::{Map, Value, json};

use crate::event;

/// From version 1 to 2: `result` became `text`.
fn rename(fields: &mut Map<String, Value>) {
    if fields["kind"] == "tool_call_finished"
        && let Some(result) = fields.remove("result")
    {
        fields.insert("text".to_owned(), result);
    }
}

/// From version 3 to 4: milliseconds became microseconds, and the kind got another name.
fn refine(fields: &mut Map<String, Value>) {
    if fields["kind"] == "tool_done" {
        fields.insert("kind".to_owned(), json!("tool_call_finished"));
    }
    if let Some(ms) = fields.remove("duration_ms").and_then(|ms| ms.as_u64()) {
        fields.insert("duration_us".to_owned(), json!(ms * 1000));
    }
}

const PLANTED: &[Option<Upcast>] = &[Some(rename), None, Some(refine)];

fn read(json: &str, schema: u32) -> Event {
    read_with(PLANTED, json, schema).unwrap_or_else(|error| panic!("{error}: {json}"))
}

fn finished(text: &str, duration_us: u64) -> Event {
    let Event::ToolCallFinished(finished) = event::tool_finished(0, text) else {
        panic!("a finished call");
    };
    Event::ToolCallFinished(mainspring_session::ToolCallFinished { duration_us, ..finished })
}

#[test]
fn an_event_takes_every_step_from_its_version_on_in_order() {
    let first = r#"{"kind":"tool_call_finished","call":0,"result":"a","duration_ms":2}"#;
    assert_eq!(read(first, 1), finished("a", 2000));
    let second = r#"{"kind":"tool_call_finished","call":0,"text":"b","duration_ms":3}"#;
    assert_eq!(read(second, 2), finished("b", 3000));
    let third = r#"{"kind":"tool_done","call":0,"text":"c","duration_ms":4}"#;
    assert_eq!(read(third, 3), finished("c", 4000));
    let fourth = r#"{"kind":"tool_call_finished","call":0,"text":"d","duration_us":5}"#;
    assert_eq!(read(fourth, 4), finished("d", 5));
}

#[test]
fn an_event_takes_no_step_from_before_its_version() {
    let second = r#"{"kind":"tool_call_finished","call":0,"result":"a","duration_ms":2}"#;
    let error = read_with(PLANTED, second, 2).unwrap_err().to_string();
    assert!(error.starts_with("missing field `text`"), "{error}");
    let newest = r#"{"kind":"tool_done","call":0,"text":"c","duration_ms":4}"#;
    assert_eq!(read(newest, 4), Event::Unknown);
    assert_eq!(read(newest, 9), Event::Unknown, "of a newer version");
}

#[test]
fn what_the_steps_do_not_know_goes_through_them() {
    let unknown = r#"{"kind":"plan_revised","steps":[1,{"a":null}]}"#;
    let verified = r#"{"kind":"answer_verified","step":3,"by":"a newer version"}"#;
    for schema in 0..6 {
        assert_eq!(read(unknown, schema), Event::Unknown);
        assert_eq!(read(verified, schema), event::verified(3));
    }
}

#[test]
fn numbers_come_through_the_steps_to_the_last_bit() {
    let cost: f64 = 0.1 + 0.2;
    let mut value = json!({"kind": "model_call_finished", "step": 0, "attempt": 1,
        "answer": {"text": "a"}, "finish_reason": "stop", "cost_usd": cost,
        "usage": {"input_tokens": u64::MAX, "output_tokens": 0}, "timing": {"total_us": 1}});
    value["duration_ms"] = json!(1);
    let Event::ModelCallFinished(finished) = read(&value.to_string(), 1) else {
        panic!("an answer");
    };
    assert_eq!(finished.cost_usd.map(f64::to_bits), Some(cost.to_bits()));
    assert_eq!(finished.usage.input_tokens, u64::MAX);
}

#[test]
fn what_is_no_event_is_an_error_at_every_version() {
    for schema in 0..6 {
        for wrong in ["", "[]", "7", "{", r#"{"kind":"answer_verified","step":"x"}"#] {
            assert!(read_with(&[], wrong, schema).is_err(), "{wrong}");
        }
        assert!(read_with(&[None, None], "[]", schema).is_err());
    }
    assert!(read_with(PLANTED, "[]", 1).is_err());
    assert!(read_with(PLANTED, r#"{"kind":"answer_verified","step":"x"}"#, 1).is_err());
}

#[test]
fn there_is_a_step_from_every_version_to_the_next() {
    assert_eq!(UPCAST_STEPS.len() + 1, SCHEMA_VERSION as usize);
}
