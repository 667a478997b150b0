//! Model failures: waiting, giving up, going to the next model.

use mainspring_session::{
    AgentSpec, AnswerRestarted, CallNotes, Command, ErrorCode, Event, Fact, Failure, HedgeNote,
    Limits, Moment, Outcome, Phase, Price, RouteSpec, StepClass, model_wait_ms_max,
};

use crate::support::{NOW, Session, agent, kinds, limited};
use crate::{event, fact};

fn retry_at(session: &mut Session, attempt: u32, after_ms: Option<u64>, seed: u64) -> Option<i64> {
    let failed = Fact::ModelFailed {
        step: 0,
        attempt,
        error: fact::server_error(),
        retry_after_ms: after_ms,
        streamed_chars: 0,
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
fn a_model_that_is_left_alone_is_waited_for_only_where_there_is_no_other() {
    let unavailable = || Failure::new(ErrorCode::MODEL_UNAVAILABLE, "left alone");
    let failed = || Fact::ModelFailed {
        step: 0,
        attempt: 1,
        error: unavailable(),
        retry_after_ms: Some(2_000),
        streamed_chars: 0,
    };
    let mut session = Session::asked(agent(&["small", "large"]));
    let events = session.tell(failed());
    assert_eq!(kinds(&events), ["model_call_failed", "route_decided", "model_call_started"]);
    let mut session = Session::asked(agent(&["small"]));
    let events = session.tell(failed());
    assert_eq!(session.orders(&events), [Command::Wait { until_us: NOW.at_us + 2_000_000 }]);
}

#[test]
fn a_call_that_was_not_made_uses_up_no_attempt_and_is_waited_for_so_often_only() {
    let failed = |attempt| Fact::ModelFailed {
        step: 0,
        attempt,
        error: Failure::new(ErrorCode::MODEL_UNAVAILABLE, "left alone"),
        retry_after_ms: Some(0),
        streamed_chars: 0,
    };
    let mut session = Session::asked(agent(&["small"]));
    for attempt in 1..=20 {
        session.tell(failed(attempt));
        session.tell(Fact::TimerFired);
    }
    let events = session.tell(failed(21));
    assert_eq!(kinds(&events), ["model_call_failed", "session_failed"]);
}

#[test]
fn an_answer_that_somebody_saw_half_of_begins_anew_with_an_event() {
    let broke_off = |error: Failure, streamed_chars| Fact::ModelFailed {
        step: 0,
        attempt: 1,
        error,
        retry_after_ms: None,
        streamed_chars,
    };
    let restarted = Event::AnswerRestarted(AnswerRestarted { step: 0, attempt: 1, characters: 7 });
    let mut retried = Session::asked(agent(&["small"]));
    let events = retried.tell(broke_off(fact::server_error(), 7));
    assert_eq!(kinds(&events), ["model_call_failed", "answer_restarted"]);
    assert_eq!(events[1], restarted);
    let mut passed_on = Session::asked(agent(&["small", "large"]));
    let events = passed_on.tell(broke_off(fact::auth_error(), 7));
    assert_eq!(events[1], restarted);
    // Nothing follows, or nobody saw anything.
    let mut ended = Session::asked(agent(&["small"]));
    let events = ended.tell(broke_off(fact::auth_error(), 7));
    assert_eq!(kinds(&events), ["model_call_failed", "session_failed"]);
    let mut unseen = Session::asked(agent(&["small"]));
    let events = unseen.tell(broke_off(fact::server_error(), 0));
    assert_eq!(kinds(&events), ["model_call_failed"]);
}

#[test]
fn a_cancelled_second_call_is_part_of_what_an_answer_cost() {
    let mut spec = agent(&["small"]);
    let price = Price { input_usd: 1e6, output_usd: 2e6, ..Price::default() };
    spec.models[0].price = Some(price);
    let hedge = HedgeNote { endpoint: 1, won: true, cost_usd_estimate: Some(10.0) };
    let Fact::ModelAnswered { step, attempt, answer, finish_reason, usage, timing, .. } =
        fact::answered(0, 1, fact::text("yes"))
    else {
        panic!("it is an answer");
    };
    let notes = CallNotes { hedge: Some(hedge), ..CallNotes::default() };
    let problems = Vec::new();
    let answered = Fact::ModelAnswered {
        step,
        attempt,
        answer,
        finish_reason,
        usage,
        timing,
        notes,
        problems,
    };
    let session = Session::asked(spec).after(answered);
    // 10 tokens read and 5 written, and once more what was read.
    assert!((session.state.cost_usd - 30.0).abs() < 1e-9, "{}", session.state.cost_usd);
}

#[test]
fn waits_are_bounded_by_what_is_told_beforehand() {
    assert_eq!(model_wait_ms_max(1, None), Some(500));
    assert_eq!(model_wait_ms_max(50, None), Some(30_000));
    assert_eq!(model_wait_ms_max(1, Some(2_000)), Some(2_201));
    assert_eq!(model_wait_ms_max(1, Some(600_001)), None);
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
fn a_model_that_failed_is_begun_with_again_a_minute_later() {
    for (after_us, tier, model, why) in [
        (59_999_999, 1, "large", "the only model that may be asked"),
        (60_000_000, 0, "small", event::FIRST),
    ] {
        let mut session = Session::asked(agent(&["small", "large"]));
        session.tell(fact::model_failed(0, 1, fact::auth_error()));
        session.tell(fact::answered(1, 1, fact::text("from the large one")));
        assert_eq!(session.state.tier, 1);
        let later = Moment { at_us: NOW.at_us + after_us, ..NOW };
        let events = session.tell_at(fact::input("and now?"), later);
        let expected = [
            event::input("and now?"),
            event::route(2, tier, model, why),
            event::calling(2, 1, tier, 3),
        ];
        assert_eq!(events, expected);
    }
}

#[test]
fn a_larger_model_that_fails_gives_way_to_a_smaller_one() {
    let mut spec = agent(&["small", "large"]);
    let mut route = RouteSpec::default();
    route.policy.start.insert(StepClass::Plan, 1);
    spec.route = Some(Box::new(route));
    let mut session = Session::asked(spec);
    assert_eq!(session.state.tier, 1);
    let events = session.tell(fact::model_failed(0, 1, fact::auth_error()));
    let expected = [
        event::model_failed(0, 1, fact::auth_error(), None),
        event::route(1, 0, "small", "model \"large\" failed (model_auth): status 401"),
        event::calling(1, 1, 0, 1),
    ];
    assert_eq!(events, expected);
    let events = session.tell(fact::model_failed(1, 1, fact::auth_error()));
    let lost = event::model_failed(1, 1, fact::auth_error(), None);
    assert_eq!(events, [lost, event::failed(fact::auth_error())], "each is asked once");
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
