//! The stored form of events. `golden_log.jsonl` is a log of format version 1 with every kind of
//! event of that version, one kind and one field of a newer version; `golden_log_v2.jsonl` is one
//! of version 2 with every kind; `golden_log_v3.jsonl` has every kind that came with version 3. None
//! of them is ever rewritten.

use std::collections::BTreeSet;

use mainspring_session::{
    BlobHash, Epoch, ErrorCode, Event, Failure, Message, Outcome, Part, Phase, Record, RouteState,
    SCHEMA_VERSION, Seq, SessionId, Spending, State, ToolCall, Usage,
};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::support::{error_result, result, session_id};
use crate::{event, fact};

const GOLDEN: &str = include_str!("golden_log.jsonl");
const GOLDEN_2: &str = include_str!("golden_log_v2.jsonl");
const GOLDEN_3: &str = include_str!("golden_log_v3.jsonl");

fn parse(line: &str) -> Event {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn encode(event: &Event) -> String {
    let mut json = Vec::new();
    event.write_json(&mut json);
    String::from_utf8(json).unwrap()
}

fn golden() -> Vec<Event> {
    GOLDEN.lines().map(parse).collect()
}

fn golden_2() -> Vec<Event> {
    GOLDEN_2.lines().map(parse).collect()
}

/// The lines of all logs.
fn lines() -> impl Iterator<Item = &'static str> {
    GOLDEN.lines().chain(GOLDEN_2.lines()).chain(GOLDEN_3.lines())
}

/// How many kinds there are since this version; a new kind does not compile until it is listed.
fn kind_counts(event: &Event) -> [usize; 2] {
    match event {
        Event::SessionStarted(_)
        | Event::InputReceived(_)
        | Event::RouteDecided(_)
        | Event::ModelCallStarted(_)
        | Event::ModelCallFinished(_)
        | Event::ModelCallFailed(_)
        | Event::AnswerVerified(_)
        | Event::AnswerRejected(_)
        | Event::ToolCallStarted(_)
        | Event::ToolCallFinished(_)
        | Event::ToolCallFailed(_)
        | Event::ToolCallLate(_)
        | Event::CancelRequested { .. }
        | Event::LimitReached { .. }
        | Event::EpochTaken(_)
        | Event::SessionFinished(_)
        | Event::SessionFailed { .. }
        | Event::SessionCancelled { .. }
        | Event::SessionForked(_)
        | Event::ApprovalRequested(_)
        | Event::ApprovalDecided(_)
        | Event::EffectUnknown(_)
        | Event::EffectResolved(_)
        | Event::Unknown => [19, 24],
        Event::CheckStarted(_)
        | Event::CheckFinished(_)
        | Event::ContextCompacted(_)
        | Event::SummaryStarted(_)
        | Event::SummaryFinished(_)
        | Event::SummaryFailed(_)
        | Event::BudgetSet(_)
        | Event::TurnClock(_)
        // Newer than both logs.
        | Event::AnswerRestarted(_) => [0, 0],
    }
}

fn assistant(text: &str, tool_calls: Vec<ToolCall>) -> Message {
    Message::Assistant { text: text.to_owned(), tool_calls, reasoning: vec![] }
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() }
}

fn golden_messages() -> Vec<Message> {
    let picture = vec![
        Part::Text { text: "What is in the picture?".to_owned() },
        Part::Image { url: "https://example.org/a.png".to_owned() },
    ];
    let calls = vec![
        call("c0", "look", r#"{"at":"a.png"}"#),
        call("c1", "send", "{}"),
        call("c2", "lok", "{}"),
    ];
    let stopped = "tool \"send\" was stopped: the session was cancelled";
    vec![
        Message::User { content: picture },
        assistant("Let me look.", calls),
        result("c0", "look", "a spring, wound up — ⚙"),
        error_result("c1", "send", "it is not known\nhint: find out"),
        error_result("c2", "lok", "no tool \"lok\""),
        assistant("A spring.", vec![]),
        Message::user("Send it again."),
        assistant("No.", vec![]),
        Message::user("Your answer was rejected: too short. Answer again."),
        Message::user("Do send it."),
        assistant("", vec![call("c3", "send", "{}")]),
        error_result("c3", "send", stopped),
    ]
}

#[test]
fn the_golden_log_folds_to_its_state() {
    let usage = |input_tokens, output_tokens, cached_tokens, reasoning_tokens| Usage {
        input_tokens,
        output_tokens,
        cached_tokens,
        cache_write_tokens: 0,
        reasoning_tokens,
    };
    let expected = State {
        session: Some(session_id()),
        fingerprint: Some(BlobHash::of(b"the agent, changed")),
        epoch: Epoch(2),
        store: String::new(),
        held: false,
        next_seq: Seq(42),
        phase: Phase::Ready,
        outcome: Some(Outcome::Cancelled("enough".to_owned())),
        messages: golden_messages(),
        context: State::of(&golden()).context,
        tier: 0,
        routed: true,
        escalate: None,
        lost_attempts: 0,
        steps: 5,
        first_step: 4,
        repairs: 0,
        turn_usage: usage(2, 2, 0, 0),
        usage: usage(63, 24, 8, 3),
        cost_usd: 0.75,
        tool_call_count: 4,
        calls_before_turn: 3,
        spending: Spending::default(),
        route: RouteState { turn_from: 9, step_from: 10, ..RouteState::default() },
    };
    assert_eq!(State::of(&golden()), expected);
}

fn golden_2_messages() -> Vec<Message> {
    let picture = vec![
        Part::Text { text: "Pay the bill.".to_owned() },
        Part::Image { url: "https://example.org/a.png".to_owned() },
    ];
    let calls = vec![
        call("c0", "pay", r#"{"amount":90}"#),
        call("c1", "order", "{}"),
        call("c2", "wire", "{}"),
        call("c3", "send", "{}"),
        call("c4", "look", "{}"),
    ];
    let refused = "tool \"wire\" was not run, a person refused it: not by wire";
    vec![
        Message::User { content: picture },
        assistant("", calls),
        result("c0", "pay", "paid"),
        result("c1", "order", "ordered"),
        error_result("c2", "wire", refused),
        result("c3", "send", "sent"),
        result("c4", "look", "a bill"),
        assistant("Paid, all of it.", vec![]),
        Message::user("Send it again."),
        assistant("", vec![call("c5", "send", "{}")]),
        error_result("c5", "send", "nobody knows"),
        Message::user("Never mind."),
    ]
}

#[test]
fn the_golden_log_of_version_2_folds_to_its_state() {
    let expected = State {
        session: Some(SessionId::new("s-5").unwrap()),
        fingerprint: Some(BlobHash::of(b"the agent")),
        epoch: Epoch(10),
        store: String::new(),
        held: false,
        next_seq: Seq(64),
        phase: Phase::Ready,
        outcome: Some(Outcome::Cancelled("enough".to_owned())),
        messages: golden_2_messages(),
        context: State::of(&golden_2()).context,
        tier: 0,
        routed: false,
        escalate: None,
        lost_attempts: 0,
        steps: 5,
        first_step: 4,
        repairs: 0,
        turn_usage: Usage::default(),
        usage: Usage { input_tokens: 62, output_tokens: 23, ..Usage::default() },
        cost_usd: 0.75,
        tool_call_count: 6,
        calls_before_turn: 6,
        spending: Spending::default(),
        route: RouteState { turn_from: 11, step_from: 12, ..RouteState::default() },
    };
    assert_eq!(State::of(&golden_2()), expected);
}

/// The names of the variants that version 2 has inside its events, as the golden log has them.
#[test]
fn the_golden_log_of_version_2_has_every_new_variant_and_field() {
    let mut seen = BTreeSet::new();
    for line in GOLDEN_2.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let fields = value.as_object().unwrap();
        let kind = value["kind"].as_str().unwrap();
        seen.extend(fields.keys().map(|name| format!("{kind}.{name}")));
        for tag in ["decision", "outcome"] {
            seen.extend(value[tag].as_str().map(|name| format!("{tag} {name}")));
        }
        seen.extend(value["edit"]["target"].as_str().map(|name| format!("target {name}")));
    }
    for expected in [
        "session_started.store",
        "session_started.held",
        "epoch_taken.store",
        "epoch_taken.held",
        "model_call_failed.retry_after_ms",
        "session_forked.origin",
        "session_forked.store",
        "approval_decided.arguments",
        "approval_decided.by",
        "effect_resolved.by",
        "decision granted",
        "decision denied",
        "outcome done",
        "outcome not_done",
        "outcome undecided",
        "outcome failed",
        "target message",
        "target call",
        "target answer",
    ] {
        assert!(seen.contains(expected), "{expected} is not in the log");
    }
}

#[test]
fn the_golden_logs_have_every_kind_of_event_of_their_version() {
    for (log, version) in [(golden(), 1), (golden_2(), 2)] {
        let kinds: BTreeSet<_> = log.iter().map(Event::kind).collect();
        assert_eq!(kinds.len(), kind_counts(&log[0])[version - 1], "{kinds:?}");
        assert!(matches!(&log[0], Event::SessionStarted(started)
            if started.schema as usize == version));
    }
    let new: BTreeSet<_> = GOLDEN_3.lines().map(|line| parse(line).kind()).collect();
    for kind in [
        "answer_restarted",
        "budget_set",
        "check_finished",
        "check_started",
        "context_compacted",
        "summary_failed",
        "summary_finished",
        "summary_started",
        "turn_clock",
    ] {
        assert!(new.contains(kind), "{kind} is not in the log of version 3");
    }
    assert_eq!(SCHEMA_VERSION, 3, "a new version has a golden log of its own");
}

#[test]
fn a_log_reads_the_same_through_records_of_its_version() {
    for (text, schema) in [(GOLDEN, 1), (GOLDEN_2, 2)] {
        let records = text.lines().zip(0..).map(|(line, seq)| Record {
            seq: Seq(seq),
            at_us: 1,
            epoch: Epoch(1),
            schema,
            json: RawValue::from_string(line.to_owned()).unwrap(),
        });
        let read: Vec<_> = records.map(|record| record.event().unwrap()).collect();
        assert_eq!(read, text.lines().map(parse).collect::<Vec<_>>());
    }
}

#[test]
fn every_event_is_written_as_it_was_read_to_the_byte() {
    for line in lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        if value["kind"] == "plan_revised" || value.get("propensity").is_some() {
            continue;
        }
        let event = parse(line);
        assert_eq!(encode(&event), line);
        assert_eq!(value["kind"], event.kind());
        assert_eq!(parse(&encode(&event)), event);
    }
}

#[test]
fn a_kind_of_a_newer_version_reads_as_unknown_and_changes_only_the_position() {
    for line in [
        r#"{"kind":"plan_revised"}"#,
        r#"{"kind":"plan_revised","steps":[{"a":1}],"kindly":null}"#,
        r#"{"steps":7,"kind":"plan_revised"}"#,
    ] {
        assert_eq!(parse(line), Event::Unknown);
    }
    let mut state = State::of(&golden());
    let before = state.clone();
    state.fold(&Event::Unknown);
    let after = State { next_seq: Seq(before.next_seq.0 + 1), ..before };
    assert_eq!(state, after);
}

#[test]
fn a_field_of_a_newer_version_is_ignored_in_every_kind() {
    for line in lines() {
        let newer = line.replacen('{', r#"{"added":{"deep":[1,"two"]},"#, 1);
        assert_eq!(parse(&newer), parse(line));
    }
}

#[test]
fn a_field_that_is_gone_or_of_the_wrong_type_is_an_error_of_the_reader() {
    for line in [
        r#"{"kind":"model_call_started","step":0,"attempt":1}"#,
        r#"{"kind":"tool_call_finished","call":"0","text":"a","duration_us":1}"#,
        r#"{"kind":"session_started","schema":1,"session":"a b","agent":"a","fingerprint":""}"#,
        r#"{"step":0}"#,
        r#"[]"#,
        "",
    ] {
        assert!(serde_json::from_str::<Event>(line).is_err(), "{line}");
    }
}

#[test]
fn a_record_keeps_the_stored_text_and_reads_it() {
    let stored = r#"{"kind":"answer_verified","step":3,"by":"a newer version"}"#;
    let record = Record {
        seq: Seq(7),
        at_us: 1,
        epoch: Epoch(1),
        schema: 1,
        json: RawValue::from_string(stored.to_owned()).unwrap(),
    };
    assert_eq!(record.event().unwrap(), event::verified(3));
    assert_eq!(record.json.get(), stored);
}

#[test]
fn an_event_is_one_line_whatever_it_holds() {
    let text = "line\nbreak\r\u{2028}\0\"\\ \u{1f980}";
    let event = event::tool_finished(0, text);
    let json = encode(&event);
    assert!(!json.contains(['\n', '\r']));
    assert_eq!(parse(&json), event);
    let mut out = b"before".to_vec();
    event.write_json(&mut out);
    assert_eq!(out, format!("before{json}").into_bytes(), "it is appended");
}

#[test]
fn a_failure_reads_back_the_same() {
    let failures = [
        fact::boom(),
        fact::server_error(),
        event::outcome_unknown("send"),
        Failure::new(ErrorCode::named("from_the_future"), "ä\n\"b\""),
    ];
    for failure in failures {
        let event = event::failed(failure);
        assert_eq!(parse(&encode(&event)), event);
    }
}

#[test]
fn kinds_that_end_a_turn_are_terminal() {
    let terminal: BTreeSet<_> =
        golden().iter().filter(|event| event.is_terminal()).map(Event::kind).collect();
    let expected = ["session_cancelled", "session_failed", "session_finished"];
    assert_eq!(terminal.into_iter().collect::<Vec<_>>(), expected);
}
