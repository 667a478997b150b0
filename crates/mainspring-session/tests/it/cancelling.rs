//! The end of a turn from outside: whatever was under way, the transcript is closed.

use mainspring_session::{Command, Fact, Message, Outcome, Phase, ToolCall};

use crate::support::{Session, agent, error_result, result, verifying};
use crate::{event, fact};

/// A session in each phase in which a turn waits for something.
fn running() -> Vec<(&'static str, Session)> {
    let asked = || Session::asked(agent(&["small", "large"]));
    let verified = Session::asked(verifying(&["small"]));
    vec![
        ("calling", asked()),
        ("waiting for a model", asked().after(fact::model_failed(0, 1, fact::server_error()))),
        ("judging", verified.after(fact::answered(0, 1, fact::calls(0, &["send"])))),
        ("acting", Session::acting(agent(&["small"]), &["look", "send"])),
        (
            "acting, one result in",
            Session::acting(agent(&["small"]), &["look", "send"]).after(fact::returned(1, 1, "x")),
        ),
        (
            "acting, one call waiting",
            Session::acting(agent(&["small"]), &["fetch", "send"]).after(fact::raised(0, 1)),
        ),
        ("cut before a step", asked().cut_after("input_received")),
    ]
}

/// Each call of an answer has its result at once and in order, and no result stands alone.
fn assert_closed(messages: &[Message], name: &str) {
    let mut open: Vec<&ToolCall> = Vec::new();
    for message in messages {
        match message {
            Message::Tool { call_id, .. } => {
                assert_eq!(open.remove(0).id, *call_id, "{name}: a result out of order");
            }
            Message::Assistant { tool_calls, .. } => {
                assert!(open.is_empty(), "{name}: {open:?} has no result");
                open = tool_calls.iter().collect();
            }
            Message::User { .. } => assert!(open.is_empty(), "{name}: {open:?} has no result"),
        }
    }
    assert!(open.is_empty(), "{name}: {open:?} has no result");
}

#[test]
fn a_cancel_in_any_phase_closes_the_transcript_and_stops_the_work() {
    for (name, mut session) in running() {
        let events = session.tell(fact::cancel());
        assert_eq!(events.first(), Some(&event::cancel_requested()), "{name}");
        assert_eq!(events.last(), Some(&event::cancelled()), "{name}");
        let expected = [Command::CancelOutstanding, Command::Finish];
        assert_eq!(session.orders(&events), expected, "{name}");
        assert_eq!(session.state.phase, Phase::Ready, "{name}");
        let outcome = Some(Outcome::Cancelled("enough".to_owned()));
        assert_eq!(session.state.outcome, outcome, "{name}");
        assert_closed(&session.state.messages, name);
    }
}

#[test]
fn the_time_limit_in_any_phase_closes_the_transcript_and_stops_the_work() {
    for (name, mut session) in running().into_iter().filter(|(name, _)| !name.starts_with("cut")) {
        let events = session.tell(Fact::TurnTimedOut);
        assert_eq!(events.last(), Some(&event::out_of_time()), "{name}");
        let expected = [Command::CancelOutstanding, Command::Finish];
        assert_eq!(session.orders(&events), expected, "{name}");
        assert_closed(&session.state.messages, name);
    }
}

#[test]
fn a_cancelled_session_takes_the_next_input() {
    for (name, mut session) in running() {
        session.tell(fact::cancel());
        let count = u32::try_from(session.state.messages.len()).unwrap() + 1;
        let step = session.state.steps;
        let events = session.tell(fact::input("again"));
        assert_eq!(events[0], event::input("again"), "{name}");
        assert_eq!(events[2], event::calling(step, 1, 0, count), "{name}");
        assert_eq!(session.state.outcome, None, "{name}");
    }
}

#[test]
fn results_that_were_there_before_the_cancel_stay() {
    let mut session = Session::acting(agent(&["small"]), &["look", "send"]);
    session.tell(fact::returned(1, 1, "sent"));
    session.tell(fact::cancel());
    let stopped = "tool \"look\" was stopped: the session was cancelled";
    let expected = [error_result("c0", "look", stopped), result("c1", "send", "sent")];
    assert_eq!(session.last_messages(2), expected);
}

#[test]
fn what_comes_after_the_cancel_is_recorded_and_never_shown() {
    let mut session = Session::acting(agent(&["small"]), &["look", "send"]);
    session.tell(fact::cancel());
    let before = session.state.messages.clone();
    let expected = [event::late_text(1, 1, "sent after all")];
    assert_eq!(session.tell(fact::returned(1, 1, "sent after all")), expected);
    let expected = [event::late_error(0, 1, fact::boom())];
    assert_eq!(session.tell(fact::raised(0, 1)), expected);
    assert_eq!(session.state.messages, before);
    // The next turn does not take it for one of its own.
    session.tell(fact::input("again"));
    session.tell(fact::answered(0, 1, fact::calls(2, &["look", "look"])));
    let late = session.tell(fact::returned(1, 1, "and again"));
    assert_eq!(late, [event::late_text(1, 1, "and again")]);
    assert!(session.state.calls().iter().all(|call| call.outstanding()));
}

#[test]
fn a_cancel_asked_for_with_an_answer_leaves_no_order_to_call() {
    let mut session = Session::asked(agent(&["small"]));
    let mut events = session.tell(fact::answered(0, 1, fact::calls(0, &["send"])));
    events.extend(session.tell(fact::cancel()));
    let expected = [Command::CancelOutstanding, Command::Finish];
    assert_eq!(session.orders(&events), expected);
}

#[test]
fn an_answer_of_an_earlier_turn_is_stale_in_the_next() {
    let mut session = Session::asked(agent(&["small"]));
    session.tell(fact::cancel());
    session.tell(fact::input("again"));
    assert_eq!(session.tell(fact::answered(0, 1, fact::text("too late"))), []);
    session.tell(fact::answered(1, 1, fact::text("in time")));
    assert_eq!(session.state.last_text(), Some("in time"));
}
