//! What a turn may use: steps, tokens, time.

use mainspring_session::{Command, ErrorCode, Fact, Failure, FinishReason, Limits, Outcome, Usage};

use crate::support::{Session, agent, limited};
use crate::{event, fact};

#[test]
fn a_turn_ends_at_its_last_step() {
    let mut session =
        Session::acting(limited(Limits { steps_max: 2, ..Limits::default() }), &["look"]);
    session.tell(fact::returned(0, 1, "a"));
    session.tell(fact::answered(1, 1, fact::calls(1, &["look"])));
    let events = session.tell(fact::returned(1, 1, "b"));
    let error = Failure::new(ErrorCode::LIMIT_STEPS, "the turn used 2 steps, limit 2")
        .with_hint("raise Limits.steps_max");
    let expected = [
        event::tool_finished(1, "b"),
        event::limit_reached("steps_max", 2, 2),
        event::failed(error.clone()),
    ];
    assert_eq!(events, expected);
    let expected = [Command::CancelOutstanding, Command::Finish];
    assert_eq!(session.orders(&events), expected);
    assert_eq!(session.state.outcome, Some(Outcome::Failed(error)));
}

#[test]
fn the_last_step_may_end_the_turn() {
    let mut session = Session::asked(limited(Limits { steps_max: 1, ..Limits::default() }));
    session.tell(fact::answered(0, 1, fact::text("yes")));
    assert_eq!(session.state.outcome, Some(Outcome::Finished));
}

#[test]
fn a_repair_an_escalation_and_a_fallback_each_count_as_a_step() {
    let wrong = || vec![fact::problem("parse", "not JSON", None)];
    let cases = [
        (&["small"][..], fact::checked(0, 1, fact::text("{"), wrong())),
        (&["small", "large"], fact::checked(0, 1, fact::text("{"), wrong())),
        (&["small", "large"], fact::model_failed(0, 1, fact::auth_error())),
    ];
    for (models, fact) in cases {
        let mut spec = agent(models);
        spec.limits.steps_max = 1;
        let mut session = Session::asked(spec);
        let events = session.tell(fact);
        let limit = event::limit_reached("steps_max", 1, 1);
        assert!(events.contains(&limit), "{models:?}: {events:?}");
    }
}

fn answered_with(usage: Usage) -> Fact {
    let answer = fact::calls(0, &["look"]);
    Fact::ModelAnswered {
        step: 0,
        attempt: 1,
        answer,
        finish_reason: FinishReason::ToolCalls,
        usage,
        timing: fact::TIMING,
        notes: mainspring_session::CallNotes::default(),
        problems: Vec::new(),
    }
}

#[test]
fn a_turn_ends_when_its_tokens_are_used_up() {
    let spec = || limited(Limits { tokens_max: 100, ..Limits::default() });
    let usage = |input_tokens| Usage {
        input_tokens,
        output_tokens: 40,
        cached_tokens: 30,
        cache_write_tokens: 0,
        reasoning_tokens: 20,
    };
    let mut session = Session::asked(spec()).after(answered_with(usage(60)));
    let events = session.tell(fact::returned(0, 1, "a"));
    let error = Failure::new(ErrorCode::LIMIT_TOKENS, "the turn used 100 tokens, limit 100")
        .with_hint("raise Limits.tokens_max");
    let expected = [
        event::tool_finished(0, "a"),
        event::limit_reached("tokens_max", 100, 100),
        event::failed(error),
    ];
    assert_eq!(events, expected);
    let mut session = Session::asked(spec()).after(answered_with(usage(59)));
    let events = session.tell(fact::returned(0, 1, "a"));
    assert_eq!(events[1], event::calling(1, 1, 0, 3));
}

#[test]
fn tokens_beyond_counting_do_not_wrap() {
    let usage = Usage {
        input_tokens: u64::MAX,
        output_tokens: u64::MAX,
        cached_tokens: u64::MAX,
        cache_write_tokens: 0,
        reasoning_tokens: u64::MAX,
    };
    let mut session = Session::asked(agent(&["small"])).after(answered_with(usage));
    session.tell(fact::returned(0, 1, "a"));
    assert!(matches!(&session.state.outcome, Some(Outcome::Failed(error))
        if error.code == ErrorCode::LIMIT_TOKENS));
    assert_eq!(session.state.usage, usage);
}

#[test]
fn every_turn_begins_with_nothing_used() {
    let mut session =
        Session::asked(limited(Limits { steps_max: 1, tokens_max: 15, ..Limits::default() }));
    for turn in 0..3 {
        session.tell(fact::answered(turn, 1, fact::text("yes")));
        assert_eq!(session.state.outcome, Some(Outcome::Finished), "turn {turn}");
        assert_eq!(session.state.usage.total(), 15 * (u64::from(turn) + 1));
        session.tell(fact::input("more"));
    }
}

#[test]
fn the_time_limit_names_its_seconds() {
    let mut session = Session::asked(limited(Limits { turn_ms_max: 1500, ..Limits::default() }));
    let events = session.tell(Fact::TurnTimedOut);
    let message = "the turn took longer than its limit of 1.5 s";
    let error = Failure::new(ErrorCode::LIMIT_TIME, message).with_hint("raise Limits.turn_s_max");
    let expected = [event::limit_reached("turn_ms_max", 1500, 1500), event::failed(error)];
    assert_eq!(events, expected);
}
