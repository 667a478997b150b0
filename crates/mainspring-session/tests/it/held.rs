//! An owner that only records what it is told: nothing follows, nothing is ordered, and the next
//! owner goes on as if it had never been there.

use mainspring_session::{CallStatus, Command, EffectOutcome, Event, Fact, Phase};

use crate::support::{NOW, STORE, Session, agent, asking, error_result, kinds, verifying};
use crate::{event, fact};

/// A session that has the calls of people and of all effects in one step, and what it waits for.
fn mixed() -> Session {
    Session::acting(asking(&["small"]), &["look", "send", "pay", "wire"])
}

#[test]
fn a_held_takeover_in_any_phase_changes_nothing_but_the_owner() {
    let asked = || Session::asked(agent(&["small"]));
    let judging = Session::asked(verifying(&["small"]));
    let failed = fact::model_failed(0, 1, fact::server_error());
    let sessions = [
        Session::started(agent(&["small"])),
        asked(),
        asked().cut_after("input_received"),
        asked().after(failed),
        judging.after(fact::answered(0, 1, fact::text("yes"))),
        mixed(),
        Session::acting(agent(&["small"]), &["fetch"]).after(fact::raised(0, 1)),
    ];
    for mut session in sessions {
        let before = session.state.phase.clone();
        let events = session.tell(fact::held(2, STORE));
        assert_eq!(events, [event::held(2, STORE)]);
        assert_eq!(session.state.phase, before);
        assert!(session.state.held);
        assert_eq!(session.orders(&events), []);
    }
}

#[test]
fn a_decision_that_is_only_recorded_starts_the_call_under_the_next_owner() {
    let mut session = mixed();
    session.tell(fact::held(2, STORE));
    let here = event::approval(2, 1, STORE);
    let events = session.tell(fact::decided(2, &here, fact::granted()));
    assert_eq!(events, [event::approval_decided(2, &here, fact::granted())]);
    assert_eq!(session.orders(&events), []);
    assert_eq!(session.statuses()[2], CallStatus::Approved);
    let events = session.tell(fact::taken(3, STORE));
    let expected = [
        event::taken(3, STORE),
        event::tool_started(0, 2, "look"),
        event::effect_unknown(1, 1),
        event::tool_started(2, 1, "pay"),
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_last_decision_that_is_only_recorded_begins_no_step() {
    let mut session = Session::acting(asking(&["small"]), &["pay"]);
    session.tell(fact::held(2, STORE));
    let here = event::approval(0, 1, STORE);
    let events = session.tell(fact::decided(0, &here, fact::denied("no")));
    assert_eq!(kinds(&events), ["approval_decided"]);
    assert_eq!(session.state.phase, Phase::Stepping);
    let events = session.tell(fact::taken(3, STORE));
    assert_eq!(events, [event::taken(3, STORE), event::calling(1, 1, 0, 3)]);
}

#[test]
fn what_was_found_out_is_recorded_and_the_call_begins_again_under_the_next_owner() {
    let (mut session, _) = Session::acting(agent(&["small"]), &["send"]).reopened();
    session.tell(fact::held(3, STORE));
    let events = session.tell(fact::resolved(0, EffectOutcome::NotDone));
    assert_eq!(events, [event::effect_resolved(0, EffectOutcome::NotDone)]);
    let events = session.tell(fact::taken(4, STORE));
    assert_eq!(events, [event::taken(4, STORE), event::tool_started(0, 2, "send")]);
}

#[test]
fn an_owner_that_runs_nothing_asks_no_policy_and_makes_nothing_unknown() {
    let mut session = mixed();
    session.tell(fact::held(2, STORE));
    assert_eq!(session.tell(fact::policy(3, false)), []);
    assert_eq!(session.tell(fact::policy(3, true)), []);
    assert_eq!(session.tell(fact::resolved(1, fact::done("sent"))), [], "nobody asked yet");
    let events = session.tell(fact::taken(3, STORE));
    let policy = Command::AskPolicy { call: mainspring_session::CallIndex(3) };
    assert!(session.orders(&events).contains(&policy));
}

#[test]
fn a_model_call_that_was_lost_before_a_held_owner_is_made_by_the_next() {
    let mut session = Session::asked(agent(&["small"]));
    session.tell(fact::held(2, STORE));
    let events = session.tell(fact::taken(3, STORE));
    let expected = [event::taken(3, STORE), event::process_lost(0, 1), event::calling(0, 2, 0, 1)];
    assert_eq!(events, expected);
}

#[test]
fn a_session_that_is_started_for_somebody_else_waits_for_them() {
    let mut session = Session::empty(agent(&["small"]));
    let Fact::Started { session: id, origin, fingerprint, store, .. } = fact::started() else {
        panic!("a start");
    };
    session.tell(Fact::Started { session: id, origin, fingerprint, store, held: true });
    let events = session.tell(fact::input("hi"));
    assert_eq!(events, [event::input("hi")]);
    assert_eq!(session.orders(&events), []);
    let events = session.tell(fact::taken(2, STORE));
    let expected = [
        event::taken(2, STORE),
        event::route(0, 0, "small", event::ONLY),
        event::calling(0, 1, 0, 1),
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_cancel_by_an_owner_that_runs_nothing_says_what_is_not_known() {
    let mut session = Session::acting(agent(&["small"]), &["look", "send"]);
    session.tell(fact::held(2, STORE));
    let events = session.tell(fact::cancel());
    let expected = [
        event::cancel_requested(),
        event::tool_stopped(0, 1, "look", "the session was cancelled"),
        event::tool_failed(1, 1, event::outcome_unknown("send"), None),
        event::cancelled(),
    ];
    assert_eq!(events, expected);
    assert_eq!(session.orders(&events), []);
    let told = event::outcome_unknown("send").to_text();
    assert_eq!(session.last_messages(1), [error_result("c1", "send", &told)]);
}

#[test]
fn no_timer_begins_anything_while_nobody_runs_the_session() {
    let waiting = Session::acting(agent(&["small"]), &["fetch"]).after(fact::raised(0, 1));
    let calling = Session::asked(agent(&["small"]));
    let calling = calling.after(fact::model_failed(0, 1, fact::server_error()));
    let later = mainspring_session::Moment { at_us: NOW.at_us + 3_600_000_000, seed: 0 };
    for mut session in [waiting, calling] {
        session.tell(fact::held(2, STORE));
        assert_eq!(session.tell_at(Fact::TimerFired, later), []);
        session.tell(fact::taken(3, STORE));
        let begun = session.tell_at(Fact::TimerFired, later);
        assert!(
            matches!(begun[..], [Event::ToolCallStarted(_) | Event::ModelCallStarted(_)]),
            "{begun:?}"
        );
    }
}
