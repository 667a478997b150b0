//! Tool calls: results, failures and retries of the calls of one step.

use mainspring_session::{
    CallStatus, Command, ErrorCode, Failure, Limits, Message, Moment, Outcome, Phase, RejectAction,
    ToolCall,
};

use crate::support::{NOW, Session, agent, error_result, kinds, limited, result};
use crate::{event, fact};

#[test]
fn the_loop_runs_from_question_over_tools_to_answer() {
    let mut session = Session::started(agent(&["small"]));
    session.tell(fact::input("how many?"));
    session.tell(fact::answered(0, 1, fact::calls(0, &["look"])));
    session.tell(fact::returned(0, 1, "3"));
    session.tell(fact::answered(1, 1, fact::calls(1, &["fetch"])));
    session.tell(fact::returned(1, 1, "4"));
    session.tell(fact::answered(2, 1, fact::text("seven")));
    let Message::Assistant { tool_calls, .. } = &session.state.messages[1] else {
        panic!("the second message is the model's");
    };
    let first =
        ToolCall { id: "c0".to_owned(), name: "look".to_owned(), arguments: "{}".to_owned() };
    assert_eq!(tool_calls, &[first]);
    assert_eq!(session.state.messages[2], result("c0", "look", "3"));
    assert_eq!(session.state.messages[4], result("c1", "fetch", "4"));
    assert_eq!(session.state.messages.len(), 6);
    assert_eq!(session.state.last_text(), Some("seven"));
    assert_eq!(session.state.outcome, Some(Outcome::Finished));
    assert_eq!(session.state.steps, 3);
    assert_eq!(session.state.usage.total(), 45);
}

#[test]
fn results_in_any_order_give_messages_in_call_order() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let mut session = Session::acting(agent(&["small"]), &["look", "fetch", "send"]);
        for call in order {
            session.tell(fact::returned(call, 1, &format!("r{call}")));
        }
        let expected =
            [result("c0", "look", "r0"), result("c1", "fetch", "r1"), result("c2", "send", "r2")];
        assert_eq!(session.last_messages(3), expected, "order {order:?}");
    }
}

#[test]
fn two_raising_tools_of_five_leave_three_good_results() {
    let mut session = Session::acting(agent(&["small"]), &["look"; 5]);
    for call in [1, 3] {
        assert_eq!(kinds(&session.tell(fact::raised(call, 1))), ["tool_call_failed"]);
    }
    for call in [4, 2, 0] {
        session.tell(fact::returned(call, 1, "fine"));
    }
    let expected = [
        result("c0", "look", "fine"),
        error_result("c1", "look", "tool raised: boom"),
        result("c2", "look", "fine"),
        error_result("c3", "look", "tool raised: boom"),
        result("c4", "look", "fine"),
    ];
    assert_eq!(session.last_messages(5), expected);
    assert!(matches!(session.state.phase, Phase::Calling(_)));
}

#[test]
fn a_failure_tells_the_model_its_hint() {
    let mut session = Session::acting(agent(&["small"]), &["look"]);
    let error = Failure::new(ErrorCode::TOOL_TIMEOUT, "tool \"look\" ran 31 s, limit 30 s")
        .with_hint("return partial results");
    session.tell(fact::failed(0, 1, error));
    let text = "tool \"look\" ran 31 s, limit 30 s\nhint: return partial results";
    assert_eq!(session.last_messages(1), [error_result("c0", "look", text)]);
}

#[test]
fn wrong_calls_of_the_last_model_are_answered_and_the_right_ones_run() {
    let problems = vec![
        fact::problem("tool_unknown", "no tool \"lok\"", Some(0)),
        fact::problem("tool_arguments", "\"id\" is missing", Some(2)),
    ];
    let answer = fact::calls(0, &["lok", "look", "fetch"]);
    let mut session = Session::asked(agent(&["small"]));
    let events = session.tell(fact::checked(0, 1, answer.clone(), problems.clone()));
    let unknown = Failure::new(ErrorCode::TOOL_UNKNOWN, "no tool \"lok\"");
    let invalid = Failure::new(ErrorCode::TOOL_ARGUMENTS_INVALID, "\"id\" is missing");
    let expected = [
        event::checked(0, 1, answer, problems.clone()),
        event::rejected(0, problems, RejectAction::Continue),
        event::tool_failed(0, 0, unknown, None),
        event::tool_started(1, 1, "look"),
        event::tool_failed(2, 0, invalid, None),
    ];
    assert_eq!(events, expected);
    session.tell(fact::returned(1, 1, "seen"));
    let expected = [
        error_result("c0", "lok", "no tool \"lok\""),
        result("c1", "look", "seen"),
        error_result("c2", "fetch", "\"id\" is missing"),
    ];
    assert_eq!(session.last_messages(3), expected);
}

#[test]
fn an_answer_of_wrong_calls_alone_leads_straight_to_the_next_step() {
    let problems = vec![fact::problem("tool_unknown", "no tool \"lok\"", Some(0))];
    let mut session = Session::asked(agent(&["small"]));
    let events = session.tell(fact::checked(0, 1, fact::calls(0, &["lok"]), problems));
    let expected =
        ["model_call_finished", "answer_rejected", "tool_call_failed", "model_call_started"];
    assert_eq!(kinds(&events), expected);
    let expected = [error_result("c0", "lok", "no tool \"lok\"")];
    assert_eq!(session.last_messages(1), expected);
}

#[test]
fn calls_past_the_limit_fail_even_where_a_larger_model_waits() {
    let mut spec = agent(&["small", "large"]);
    spec.limits.tool_calls_per_step_max = 2;
    let answer = fact::calls(0, &["look"; 4]);
    let mut session = Session::asked(spec);
    let events = session.tell(fact::answered(0, 1, answer.clone()));
    let text = "4 tool calls in one answer, limit 2";
    let problems = vec![
        fact::problem("tool_count", text, Some(2)),
        fact::problem("tool_count", text, Some(3)),
    ];
    let error = || Failure::new(ErrorCode::TOOL_CALLS_TOO_MANY, text);
    let expected = [
        event::checked(0, 1, answer, problems.clone()),
        event::rejected(0, problems, RejectAction::Continue),
        event::tool_started(0, 1, "look"),
        event::tool_started(1, 1, "look"),
        event::tool_failed(2, 0, error(), None),
        event::tool_failed(3, 0, error(), None),
    ];
    assert_eq!(events, expected);
}

#[test]
fn as_many_calls_as_the_limit_allows_all_run() {
    let session = Session::acting(
        limited(Limits { tool_calls_per_step_max: 3, ..Limits::default() }),
        &["look"; 3],
    );
    let running = |call: &mainspring_session::ToolCallState| call.status == CallStatus::Running;
    assert_eq!(session.state.calls().len(), 3);
    assert!(session.state.calls().iter().all(running));
}

#[test]
fn a_repeatable_tool_is_tried_again_until_its_attempts_are_used_up() {
    for name in ["fetch", "book"] {
        let mut session = Session::acting(agent(&["small"]), &[name]);
        // Seed 0 is half of the full wait: 100 ms, then 200 ms.
        for (attempt, wait_us) in [(1, 50_000), (2, 100_000)] {
            let due_us = NOW.at_us + wait_us;
            let events = session.tell(fact::raised(0, attempt));
            let failed = event::tool_failed(0, attempt, fact::boom(), Some(due_us));
            assert_eq!(events, [failed]);
            let wait = [Command::Wait { until_us: due_us }];
            assert_eq!(session.orders(&events), wait);
            let due = Moment { at_us: due_us, seed: 0 };
            let events = session.tell_at(mainspring_session::Fact::TimerFired, due);
            assert_eq!(events, [event::tool_started(0, attempt + 1, name)]);
        }
        session.tell(fact::raised(0, 3));
        let expected = [error_result("c0", name, "tool raised: boom")];
        assert_eq!(session.last_messages(1), expected);
    }
}

#[test]
fn an_unsafe_tool_is_never_tried_again() {
    let mut session = Session::acting(agent(&["small"]), &["send"]);
    let events = session.tell(fact::raised(0, 1));
    assert_eq!(events[0], event::tool_failed(0, 1, fact::boom(), None));
}

#[test]
fn an_error_that_a_repetition_cannot_cure_is_not_tried_again() {
    for code in [ErrorCode::TOOL_ARGUMENTS_INVALID, ErrorCode::TOOL_RESULT_INVALID] {
        let mut session = Session::acting(agent(&["small"]), &["fetch"]);
        let error = Failure::new(code, "no");
        let events = session.tell(fact::failed(0, 1, error.clone()));
        assert_eq!(events[0], event::tool_failed(0, 1, error, None));
    }
}

#[test]
fn a_waiting_call_does_not_hold_back_its_siblings() {
    let mut session = Session::acting(agent(&["small"]), &["fetch", "look"]);
    session.tell(fact::raised(0, 1));
    session.tell(fact::returned(1, 1, "seen"));
    assert_eq!(session.state.calls()[0].status, CallStatus::Backoff(1_050_000));
    let late = session.tell(fact::returned(0, 1, "after all"));
    assert_eq!(late, [event::late_text(0, 1, "after all")]);
    session.tell_at(mainspring_session::Fact::TimerFired, Moment { at_us: 1_050_000, seed: 0 });
    session.tell(fact::returned(0, 2, "fetched"));
    let expected = [result("c0", "fetch", "fetched"), result("c1", "look", "seen")];
    assert_eq!(session.last_messages(2), expected);
}

fn read_by_model(text: &str, bytes_max: u64) -> String {
    let spec = limited(Limits { tool_result_bytes_max: bytes_max, ..Limits::default() });
    let mut session = Session::acting(spec, &["look"]);
    session.tell(fact::returned(0, 1, text));
    match session.last_messages(1) {
        [Message::Tool { text, .. }] => text.clone(),
        other => panic!("one result, not {other:?}"),
    }
}

#[test]
fn a_long_result_loses_its_middle_on_character_boundaries() {
    let cases = [
        ("0123456789", 10, "0123456789"),
        ("0123456789", 4, "01\n[... 6 bytes cut ...]\n89"),
        ("0123456789", 5, "01\n[... 6 bytes cut ...]\n89"),
        ("0123456789", 0, "\n[... 10 bytes cut ...]\n"),
        ("", 0, ""),
        // A character of two bytes on either side, then one of four.
        ("äöüß", 6, "ä\n[... 4 bytes cut ...]\nß"),
        ("äöüß", 8, "äöüß"),
        ("🦀🦀🦀", 6, "\n[... 12 bytes cut ...]\n"),
        ("🦀🦀🦀", 10, "🦀\n[... 4 bytes cut ...]\n🦀"),
    ];
    for (text, bytes_max, expected) in cases {
        assert_eq!(read_by_model(text, bytes_max), expected, "{text} to {bytes_max}");
    }
}

#[test]
fn a_long_late_result_is_cut_too() {
    let spec = limited(Limits { tool_result_bytes_max: 4, ..Limits::default() });
    let events = Session::started(spec).tell(fact::returned(0, 1, "0123456789"));
    let cut = "01\n[... 6 bytes cut ...]\n89";
    assert_eq!(events, [event::late_text(0, 1, cut)]);
}

#[test]
fn call_positions_go_on_over_steps_and_turns() {
    let mut session = Session::acting(agent(&["small"]), &["look", "look"]);
    session.tell(fact::returned(0, 1, "a"));
    session.tell(fact::returned(1, 1, "b"));
    session.tell(fact::answered(1, 1, fact::text("done")));
    session.tell(fact::input("more"));
    let events = session.tell(fact::answered(2, 1, fact::calls(2, &["look"])));
    assert_eq!(events[1], event::tool_started(2, 1, "look"));
    assert_eq!(session.state.tool_call_count, 3);
}

#[test]
fn a_started_call_is_ordered_once() {
    let mut session = Session::asked(agent(&["small"]));
    let events = session.tell(fact::answered(0, 1, fact::calls(0, &["look", "send"])));
    let call = |index| Command::CallTool { call: mainspring_session::CallIndex(index), attempt: 1 };
    assert_eq!(session.orders(&events), [call(0), call(1)]);
    let later = session.tell(fact::returned(0, 1, "a"));
    assert_eq!(session.orders(&later), []);
    // Told together, the call that has already ended is not ordered.
    let both: Vec<_> = events.into_iter().chain(later).collect();
    assert_eq!(session.orders(&both), [call(1)]);
}
