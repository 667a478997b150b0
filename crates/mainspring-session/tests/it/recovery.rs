//! A new owner folds the log and goes on: nothing recorded is done again, nothing unsafe twice.

use mainspring_session::{
    ActiveModelCall, CallIndex, CallStatus, Command, Epoch, Event, Fact, FactKind, Moment, Phase,
    PhaseKind,
};

use crate::support::{NOW, Session, agent, kinds, verifying};
use crate::{event, fact};

fn tool(call: u64, attempt: u32) -> Command {
    Command::CallTool { call: CallIndex(call), attempt }
}

#[test]
fn what_becomes_of_a_running_tool_depends_on_its_effect() {
    for name in ["look", "fetch", "book"] {
        let session = Session::acting(agent(&["small"]), &[name]);
        let (session, events) = session.reopened();
        let expected = [event::epoch_taken(), event::tool_started(0, 2, name)];
        assert_eq!(events, expected);
        assert_eq!(session.orders(&events), [tool(0, 2)]);
    }
    let (session, events) = Session::acting(agent(&["small"]), &["send"]).reopened();
    assert_eq!(events, [event::epoch_taken(), event::effect_unknown(0, 1)]);
    assert_eq!(session.orders(&events), []);
    assert_eq!(session.statuses(), [CallStatus::Unknown]);
}

#[test]
fn a_tool_that_the_agent_no_longer_has_counts_as_unsafe() {
    let mut session = Session::acting(agent(&["small"]), &["look"]);
    session.spec.tools.clear();
    let (_, events) = session.reopened();
    assert_eq!(events[1], event::effect_unknown(0, 1));
}

#[test]
fn an_answer_that_waited_for_a_function_the_agent_no_longer_has_is_accepted() {
    let session = Session::asked(verifying(&["small"]));
    let mut session = session.after(fact::answered(0, 1, fact::text("yes")));
    session.spec.verify = false;
    let (session, events) = session.reopened();
    assert_eq!(events, [event::epoch_taken(), event::verified(0), event::finished(0)]);
    assert_eq!(session.orders(&events), [Command::Finish]);
}

#[test]
fn recorded_results_are_not_asked_for_again() {
    let session = Session::acting(agent(&["small"]), &["look", "fetch", "send"]);
    let session = session.after(fact::returned(0, 1, "seen")).after(fact::returned(2, 1, "sent"));
    let (session, events) = session.reopened();
    let expected = [event::epoch_taken(), event::tool_started(1, 2, "fetch")];
    assert_eq!(events, expected);
    assert_eq!(session.orders(&events), [tool(1, 2)]);
}

#[test]
fn a_result_of_the_lost_attempt_is_late() {
    let session = Session::acting(agent(&["small"]), &["fetch"]);
    let (mut session, _) = session.reopened();
    let late = session.tell(fact::returned(0, 1, "old"));
    assert_eq!(late, [event::late_text(0, 1, "old")]);
    let events = session.tell(fact::returned(0, 2, "new"));
    assert_eq!(events[0], event::tool_finished(0, "new"));
}

#[test]
fn a_lost_model_call_is_repeated_even_past_its_attempts() {
    let mut session = Session::asked(agent(&["small"]));
    session.spec.limits.model_attempts_max = 1;
    for attempt in 1..4 {
        let (next, events) = session.reopened();
        session = next;
        assert_eq!(events[2], event::calling(0, attempt + 1, 0, 1));
        let orders = session.orders(&events);
        assert!(matches!(orders[..], [Command::Wait { .. }, Command::CallModel(call)]
            if call.attempt == attempt + 1));
    }
}

#[test]
fn a_crash_uses_up_none_of_the_attempts_at_a_model_call() {
    let mut session = Session::asked(agent(&["small"]));
    session.spec.limits.model_attempts_max = 2;
    for _ in 1..4 {
        session = session.reopened().0;
    }
    let events = session.tell(fact::model_failed(0, 4, fact::server_error()));
    let Event::ModelCallFailed(failed) = &events[0] else {
        panic!("a failure is recorded");
    };
    assert!(failed.retry_at_us.is_some(), "the first failure of two attempts is tried again");
}

#[test]
fn of_two_attempts_told_together_only_the_last_is_ordered() {
    let mut session = Session::started(agent(&["small"]));
    let mut events = session.tell(fact::input("hi"));
    events.extend(session.tell(fact::reopened()));
    let orders = session.orders(&events);
    let call = ActiveModelCall { step: 0, attempt: 2, tier: 0 };
    assert_eq!(orders, [Command::Wait { until_us: NOW.at_us }, Command::CallModel(call)]);
}

#[test]
fn an_answer_to_the_lost_call_does_not_count() {
    let (mut session, _) = Session::asked(agent(&["small"])).reopened();
    assert_eq!(session.tell(fact::answered(0, 1, fact::text("old"))), []);
    session.tell(fact::answered(0, 2, fact::text("new")));
    assert_eq!(session.state.last_text(), Some("new"));
}

#[test]
fn waits_and_verdicts_are_taken_up_again() {
    let waiting = Session::asked(agent(&["small"]));
    let waiting = waiting.after(fact::model_failed(0, 1, fact::server_error()));
    let judging = Session::asked(verifying(&["small"]));
    let judging = judging.after(fact::answered(0, 1, fact::text("yes")));
    let resting = Session::acting(agent(&["small"]), &["fetch", "book", "look"]);
    let resting = resting.after(fact::raised(0, 1)).after(fact::raised(1, 1));
    let wait = |until_us| Command::Wait { until_us };
    let cases = [
        (waiting, vec![wait(1_250_000)]),
        (judging, vec![Command::Verify]),
        (resting, vec![wait(1_050_000), wait(1_050_000), tool(2, 2)]),
        (Session::started(agent(&["small"])), vec![]),
    ];
    for (session, expected) in cases {
        let (session, events) = session.reopened();
        assert_eq!(session.orders(&events), expected);
    }
}

#[test]
fn a_wait_that_passed_while_nobody_was_there_ends_at_once() {
    let session = Session::asked(agent(&["small"]));
    let session = session.after(fact::model_failed(0, 1, fact::server_error()));
    let (mut session, _) = session.reopened();
    let later = Moment { at_us: NOW.at_us + 3_600_000_000, seed: 0 };
    let events = session.tell_at(Fact::TimerFired, later);
    assert_eq!(events, [event::calling(0, 2, 0, 1)]);
}

#[test]
fn a_new_owner_takes_epoch_fingerprint_and_store() {
    let mut session = Session::started(agent(&["small"]));
    assert_eq!(session.state.epoch, Epoch(1));
    let other = mainspring_session::BlobHash::of(b"another agent");
    session.tell(Fact::Reopened {
        epoch: Epoch(5),
        fingerprint: other.clone(),
        store: "store-2".to_owned(),
        held: false,
    });
    assert_eq!(session.state.epoch, Epoch(5));
    assert_eq!(session.state.fingerprint, Some(other));
    assert_eq!(session.state.store, "store-2");
}

#[test]
fn a_finished_session_answers_a_follow_up_after_a_crash() {
    let session = Session::asked(agent(&["small"])).after(fact::answered(0, 1, fact::text("yes")));
    let (mut session, _) = session.reopened();
    let events = session.tell(fact::input("why?"));
    let expected = ["input_received", "route_decided", "model_call_started"];
    assert_eq!(kinds(&events), expected);
    session.tell(fact::answered(1, 1, fact::text("because")));
    assert_eq!(session.state.last_text(), Some("because"));
    assert_eq!(session.state.messages.len(), 4);
}

#[test]
fn a_log_cut_anywhere_goes_on() {
    let wrong = vec![fact::problem("parse", "not JSON", None)];
    let session = Session::asked(verifying(&["small", "large"]))
        .after(fact::checked(0, 1, fact::text("{"), wrong))
        .after(fact::model_failed(1, 1, fact::server_error()));
    let later = Moment { at_us: NOW.at_us + 1_000_000, seed: 0 };
    let mut session = session;
    session.tell_at(Fact::TimerFired, later);
    let whole = session
        .after(fact::answered(1, 2, fact::calls(0, &["look", "send"])))
        .after(fact::accepted())
        .after(fact::returned(0, 1, "seen"))
        .after(fact::returned(1, 1, "sent"))
        .after(fact::answered(2, 1, fact::text("done")))
        .after(fact::accepted());
    for length in 1..=whole.log.len() {
        let mut cut = whole.clone();
        cut.log.truncate(length);
        let (cut, events) = cut.reopened();
        let waits = matches!(
            cut.state.phase,
            Phase::Ready
                | Phase::Calling(_)
                | Phase::Backoff(..)
                | Phase::Judging(_)
                | Phase::Acting(_)
        );
        assert!(waits, "cut to {length}: {:?}", cut.state.phase);
        if cut.state.is_open() && !cut.state.waits_for_people() {
            let orders = cut.orders(&events);
            assert!(!orders.is_empty(), "cut to {length}: nothing is ordered");
        }
    }
}

#[test]
fn a_session_without_events_cannot_be_reopened() {
    let pair = (PhaseKind::Empty, FactKind::Reopened);
    assert!(!mainspring_session::TRANSITIONS.contains(&pair));
}
