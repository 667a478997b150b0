//! Model failures: waiting, giving up, going to the next model.

use mainspring_session::{
    AgentSpec, Command, Event, Fact, Failure, Limits, Moment, Outcome, Phase,
};

use crate::support::{NOW, Session, agent, kinds, limited};
use crate::{event, fact};

fn retry_at(session: &mut Session, attempt: u32, after_ms: Option<u64>, seed: u64) -> Option<i64> {
    let failed = Fact::ModelFailed {
        step: 0,
        attempt,
        error: fact::server_error(),
        retry_after_ms: after_ms,
    };
    let now = Moment { at_us: NOW.at_us, seed };
    let Some(Event::ModelCallFailed(failed)) = session.tell_at(failed, now).into_iter().next()
    else {
        panic!("a failure is recorded");
    };
    failed.retry_at_us.map(|at_us| at_us - NOW.at_us)
}

/// A session at this attempt of its first model call.
fn at_attempt(spec: AgentSpec, attempt: u32) -> Session {
    let mut session = Session::asked(spec);
    for attempt in 1..attempt {
        retry_at(&mut session, attempt, None, 0);
        let due = Moment { at_us: NOW.at_us + 3_600_000_000, seed: 0 };
        let events = session.tell_at(Fact::TimerFired, due);
        assert_eq!(events, [event::calling(0, attempt + 1, 0, 1)]);
    }
    session
}

fn patient() -> AgentSpec {
    limited(Limits { model_attempts_max: 100, ..Limits::default() })
}

#[test]
fn the_wait_doubles_up_to_half_a_minute_and_is_spread_over_its_upper_half() {
    let full_ms = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000];
    for (attempt, full_ms) in (1..).zip(full_ms) {
        let session = at_attempt(patient(), attempt);
        let wait_us = |seed| retry_at(&mut session.clone(), attempt, None, seed).unwrap();
        assert_eq!(wait_us(0), full_ms * 500, "attempt {attempt}, shortest");
        assert_eq!(wait_us(512), full_ms * 750, "attempt {attempt}, middle");
        let longest = wait_us(1023);
        assert!((full_ms * 999..full_ms * 1000).contains(&longest), "{longest}");
        assert_eq!(wait_us(1024), full_ms * 500, "a seed counts modulo 1024");
    }
}

#[test]
fn a_late_attempt_waits_no_longer_than_any_other() {
    let mut session = at_attempt(patient(), 80);
    assert_eq!(retry_at(&mut session, 80, None, u64::MAX), Some(29_985_351));
}

#[test]
fn the_server_is_obeyed_with_up_to_a_tenth_on_top() {
    let asked = |ms, seed| retry_at(&mut Session::asked(agent(&["a"])), 1, Some(ms), seed);
    assert_eq!(asked(0, 1023), Some(0));
    assert_eq!(asked(2000, 0), Some(2_000_000));
    assert_eq!(asked(2000, 512), Some(2_100_000));
    let most = asked(2000, 1023).unwrap();
    assert!((2_199_000..2_200_000).contains(&most), "{most}");
    assert_eq!(asked(600_000, 0), Some(600_000_000));
}

#[test]
fn a_server_that_asks_for_more_than_ten_minutes_is_given_up() {
    let mut session = Session::asked(agent(&["small", "large"]));
    assert_eq!(retry_at(&mut session, 1, Some(600_001), 0), None);
    assert!(matches!(session.state.phase, Phase::Calling(call) if call.tier == 1));
    let mut session = Session::asked(agent(&["small"]));
    assert_eq!(retry_at(&mut session, 1, Some(u64::MAX), 0), None);
    let outcome = Some(Outcome::Failed(fact::server_error()));
    assert_eq!(session.state.outcome, outcome);
}

#[test]
fn the_attempts_at_a_call_are_limited() {
    let spec = limited(Limits { model_attempts_max: 3, ..Limits::default() });
    let mut session = at_attempt(spec, 3);
    let events = session.tell(fact::model_failed(0, 3, fact::server_error()));
    let expected = [
        event::model_failed(0, 3, fact::server_error(), None),
        event::failed(fact::server_error()),
    ];
    assert_eq!(events, expected);
    assert_eq!(session.orders(&events), [Command::Finish]);
}

#[test]
fn a_failure_asks_for_a_timer() {
    let mut session = Session::asked(agent(&["small"]));
    let events = session.tell(fact::model_failed(0, 1, fact::server_error()));
    let wait = Command::Wait { until_us: 1_250_000 };
    assert_eq!(session.orders(&events), [wait]);
}

#[test]
fn a_retry_repeats_the_same_call() {
    let mut session = at_attempt(agent(&["small"]), 2);
    let events = session.tell(fact::answered(0, 2, fact::text("yes")));
    let expected = [event::answered(0, 2, fact::text("yes")), event::finished(0)];
    assert_eq!(events, expected);
    assert_eq!(session.state.steps, 1);
}

#[test]
fn models_that_fail_are_passed_one_by_one_until_none_is_left() {
    let mut session = Session::asked(agent(&["a", "b", "c"]));
    let mut routes = Vec::new();
    for step in 0..3 {
        routes.extend(session.tell(fact::model_failed(step, 1, fact::auth_error())));
    }
    let why = |name| format!("model {name:?} failed (model_auth): status 401");
    let lost = |step| event::model_failed(step, 1, fact::auth_error(), None);
    let expected = [
        lost(0),
        event::route(1, 1, "b", &why("a")),
        event::calling(1, 1, 1, 1),
        lost(1),
        event::route(2, 2, "c", &why("b")),
        event::calling(2, 1, 2, 1),
        lost(2),
        event::failed(fact::auth_error()),
    ];
    assert_eq!(routes, expected);
}

#[test]
fn a_broken_invariant_in_a_model_call_goes_to_no_other_model() {
    let error = Failure::new(mainspring_session::ErrorCode::INTERNAL, "it broke");
    let mut session = Session::asked(agent(&["small", "large"]));
    let events = session.tell(fact::model_failed(0, 1, error.clone()));
    assert_eq!(kinds(&events), ["model_call_failed", "session_failed"]);
    assert_eq!(session.state.outcome, Some(Outcome::Failed(error)));
}

#[test]
fn the_next_turn_begins_with_the_first_model_again() {
    let mut session = Session::asked(agent(&["small", "large"]));
    session.tell(fact::model_failed(0, 1, fact::auth_error()));
    session.tell(fact::answered(1, 1, fact::text("from the large one")));
    assert_eq!(session.state.tier, 1);
    let events = session.tell(fact::input("and now?"));
    let expected = [
        event::input("and now?"),
        event::route(2, 0, "small", event::FIRST),
        event::calling(2, 1, 0, 3),
    ];
    assert_eq!(events, expected);
}

#[test]
fn the_model_that_took_over_keeps_the_turn() {
    let mut session = Session::asked(agent(&["small", "large"]));
    session.tell(fact::model_failed(0, 1, fact::auth_error()));
    session.tell(fact::answered(1, 1, fact::calls(0, &["look"])));
    let events = session.tell(fact::returned(0, 1, "seen"));
    let expected = [event::tool_finished(0, "seen"), event::calling(2, 1, 1, 3)];
    assert_eq!(events, expected);
}
