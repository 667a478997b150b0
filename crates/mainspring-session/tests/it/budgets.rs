//! Who pays for a session, and what the log says that it has spent.

use mainspring_session::{
    Amount, Budget, ErrorCode, Event, Fact, Failure, Funding, Moment, Period, Price, SessionId,
    State, Usage, estimate,
};
use serde_json::value::RawValue;

use crate::support::{NOW, Session, agent};
use crate::{event, fact};

fn acme(budget: Option<Budget>) -> Funding {
    Funding { tenant: "acme".to_owned(), within: Vec::new(), budget }
}

fn funded(budget: Budget) -> Session {
    let mut spec = agent(&["small", "large"]);
    let price = |input_usd, output_usd| Some(Price { input_usd, output_usd, ..Price::default() });
    spec.models[0].price = price(1.0, 2.0);
    spec.models[1].price = price(10.0, 20.0);
    Session::started(spec).after(fact::funded(acme(Some(budget)))).after(fact::input("hi"))
}

fn tokens(tokens: u64) -> Budget {
    Budget { tokens: Some(tokens), ..Budget::default() }
}

fn reserved(session: &Session) -> Amount {
    session.state.spending.reserved.expect("a call is under way")
}

#[test]
fn a_session_that_nobody_pays_for_keeps_no_account() {
    let mut session = Session::asked(agent(&["small"]));
    session.tell(fact::answered(0, 1, fact::text("yes")));
    assert!(session.state.spending.is_empty());
    let text = serde_json::to_string(&session.log).unwrap();
    assert!(!text.contains("reserved") && !text.contains("charged") && !text.contains("budget"));
    assert!(!serde_json::to_string(&session.state).unwrap().contains("spending"));
}

#[test]
fn an_answer_settles_what_its_call_had_reserved() {
    let mut session = funded(tokens(5_000));
    assert!(reserved(&session).tokens >= 1_024);
    session.tell(fact::answered(0, 1, fact::text("yes")));
    let spent = Amount { usd_nanos: 20_000, tokens: 15, calls: 1 };
    let spending = &session.state.spending;
    assert_eq!((spending.spent, spending.charged, spending.reserved), (spent, spent, None));
    assert_eq!(spending.left().unwrap().tokens, Some(4_985));
}

#[test]
fn a_server_that_does_not_count_is_taken_at_what_was_expected() {
    let mut session = funded(tokens(5_000));
    let expected = reserved(&session);
    let Fact::ModelAnswered {
        step, attempt, answer, finish_reason, timing, notes, problems, ..
    } = fact::answered(0, 1, fact::text("yes"))
    else {
        panic!("an answer")
    };
    let usage = Usage::default();
    session.tell(Fact::ModelAnswered {
        step,
        attempt,
        answer,
        finish_reason,
        usage,
        timing,
        notes,
        problems,
    });
    assert_eq!(session.state.spending.spent, expected);
}

#[test]
fn a_failed_call_costs_what_the_server_can_have_billed() {
    let cases = [
        (ErrorCode::MODEL_RATE_LIMITED, 0, 1),
        (ErrorCode::MODEL_CONNECT, 0, 1),
        (ErrorCode::MODEL_AUTH, 0, 1),
        (ErrorCode::BUDGET_EXHAUSTED, 0, 0),
        (ErrorCode::ENGINE_OVERLOADED, 0, 0),
    ];
    for (code, tokens_used, calls) in cases {
        let mut session = funded(tokens(5_000));
        session.tell(fact::model_failed(0, 1, Failure::new(code.clone(), "no")));
        let charged = session.state.spending.charged;
        assert_eq!((charged.tokens, charged.calls), (tokens_used, calls), "{code}");
    }
    for code in [ErrorCode::MODEL_TIMEOUT, ErrorCode::MODEL_INTERRUPTED] {
        let mut session = funded(tokens(5_000));
        let expected = reserved(&session);
        session.tell(fact::model_failed(0, 1, Failure::new(code, "cut")));
        let charged = session.state.spending.charged;
        assert_eq!(charged.tokens, expected.tokens - 1_024, "what it had read");
        assert_eq!(charged.calls, 1);
    }
}

#[test]
fn a_call_whose_process_died_is_charged_at_what_was_reserved() {
    let session = funded(tokens(5_000));
    let expected = reserved(&session);
    let (session, events) = session.reopened();
    assert!(
        matches!(&events[1], Event::ModelCallFailed(failed) if failed.charged == Some(expected))
    );
    assert_eq!(session.state.spending.charged, expected);
    assert!(session.state.spending.reserved.is_some(), "the call is made again");
}

#[test]
fn a_call_that_is_cancelled_is_charged_at_what_was_reserved() {
    let mut session = funded(tokens(5_000));
    let expected = reserved(&session);
    session.tell(fact::cancel());
    assert_eq!(session.state.spending.charged, expected);
    assert_eq!(session.state.spending.reserved, None);
}

#[test]
fn a_fork_goes_on_with_the_remainder_or_with_a_budget_of_its_own() {
    let mut session = funded(tokens(5_000));
    session.tell(fact::answered(0, 1, fact::text("yes")));
    let mut same = session.clone();
    same.tell(fact::forked(None));
    assert_eq!(same.state.spending.left().unwrap().tokens, Some(4_985));
    assert_eq!(same.state.spending.charged, Amount::default(), "a fork pays for itself");
    let Fact::Forked { session: id, origin, fingerprint, store, edit, .. } = fact::forked(None)
    else {
        panic!("a fork")
    };
    // Also one of the same amount.
    let funding = Some(acme(Some(tokens(5_000))));
    let mut own = session;
    let events = own.tell(Fact::Forked { session: id, origin, fingerprint, store, edit, funding });
    assert_eq!(events[1], Event::BudgetSet(acme(Some(tokens(5_000)))));
    assert_eq!(own.state.spending.left().unwrap().tokens, Some(5_000));
}

#[test]
fn another_budget_before_a_turn_keeps_what_is_spent() {
    let mut session = funded(tokens(5_000));
    session.tell(fact::answered(0, 1, fact::text("yes")));
    assert_eq!(session.tell(fact::funded(acme(Some(tokens(5_000))))), [], "it is the same");
    session.tell(fact::funded(acme(Some(tokens(7_000)))));
    assert_eq!(session.state.spending.left().unwrap().tokens, Some(6_985));
}

#[test]
fn past_the_soft_limit_the_cheapest_model_is_asked() {
    let budget = Budget { soft: Some(0.5), ..tokens(20) };
    let mut spec = agent(&["large", "small"]);
    spec.models[0].price = Some(Price { input_usd: 9.0, ..Price::default() });
    spec.models[1].price = Some(Price::default());
    let mut session = Session::started(spec).after(fact::funded(acme(Some(budget))));
    session.tell(fact::input("hi"));
    assert_eq!(session.state.tier, 0);
    session.tell(fact::answered(0, 1, fact::text("yes")));
    assert!(session.state.spending.is_low());
    let events = session.tell(fact::input("more"));
    let reason = "a budget is past its soft limit: the cheapest model";
    assert_eq!(events[1], event::route(1, 1, "small", reason));
}

#[test]
fn time_counts_while_a_turn_runs_and_ends_it() {
    let budget = Budget { ms: Some(10_000), ..Budget::default() };
    let mut session = funded(budget);
    let at = |ms: i64| Moment { at_us: NOW.at_us + ms * 1000, seed: 0 };
    assert_eq!(session.state.spending.ms_left(at(4_000).at_us), Some(6_000));
    let events = session.tell_at(fact::answered(0, 1, fact::text("yes")), at(4_000));
    let kinds: Vec<_> = events.iter().map(Event::kind).collect();
    assert_eq!(kinds, ["model_call_finished", "turn_clock", "session_finished"]);
    assert_eq!(session.state.spending.used_ms, 4_000);
    // Nothing runs between turns.
    session.tell_at(fact::input("more"), at(50_000));
    assert_eq!(session.state.spending.ms_left(at(55_000).at_us), Some(1_000));
    let events = session.tell_at(Fact::TurnTimedOut, at(56_000));
    assert_eq!(events[0], event::limit_reached("budget_ms", 10_000, 10_000));
    let Some(Event::SessionFailed { error }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.code, ErrorCode::BUDGET_EXHAUSTED);
    assert_eq!(error.message, "the turns of the session took its budget of 10 s");
}

#[test]
fn a_turn_that_reaches_its_own_limit_first_says_so() {
    let mut session = funded(Budget { ms: Some(10_000), ..Budget::default() });
    session.spec.limits.turn_ms_max = 4_000;
    let now = Moment { at_us: NOW.at_us + 4_000_000, seed: 0 };
    let events = session.tell_at(Fact::TurnTimedOut, now);
    assert_eq!(events[0], event::limit_reached("turn_ms_max", 4_000, 4_000));
    assert_eq!(session.state.spending.used_ms, 4_000);
}

#[test]
fn the_time_of_a_process_that_is_gone_does_not_count() {
    let session = funded(Budget { ms: Some(10_000), ..Budget::default() });
    let (session, _) = session.reopened();
    assert_eq!(session.state.spending.used_ms, 0);
    assert_eq!(session.state.spending.running_since_us, Some(NOW.at_us));
}

#[test]
fn what_a_call_may_use_follows_from_the_request_and_the_model() {
    let params = |text: &str| Some(RawValue::from_string(text.to_owned()).unwrap());
    let session = funded(tokens(5_000));
    let (state, mut spec) = (session.state, session.spec);
    assert_eq!(estimate(&state, &spec, 0).tokens_max, None, "nothing bounds the answer");
    assert_eq!(estimate(&state, &spec, 0).usd_nanos_max, None);
    spec.models[0].output_tokens_max = Some(9_000);
    let of_model = estimate(&state, &spec, 0);
    assert!(of_model.tokens_max.unwrap() > 9_000 && of_model.likely.tokens < 2_000);
    spec.models[0].params = params(r#"{"max_tokens":300,"max_completion_tokens":200}"#);
    let asked = estimate(&state, &spec, 0);
    assert!(asked.likely.tokens > 200 && asked.likely.tokens < of_model.likely.tokens);
    assert!(asked.tokens_max.unwrap() < 1_000);
    assert!(asked.usd_nanos_max.unwrap() >= asked.likely.usd_nanos);
    spec.models[0].params = None;
    spec.models[0].output_tokens_max = None;
    spec.models[0].price = Some(Price { input_usd: 1.0, ..Price::default() });
    assert!(estimate(&state, &spec, 0).usd_nanos_max.is_some(), "writing costs nothing");
}

#[test]
fn the_next_call_is_expected_to_read_what_the_last_one_did_and_what_came_since() {
    let mut session = funded(tokens(50_000));
    session.tell(fact::answered(0, 1, fact::calls(0, &["look"])));
    session.tell(fact::returned(0, 1, &"x".repeat(3_000)));
    let Estimated { likely, most } = Estimated::of(&session.state, &session);
    // Ten were read, and three thousand bytes came.
    assert!((760 + 1_024..900 + 1_024).contains(&likely), "{likely}");
    assert_eq!(most, None);
}

struct Estimated {
    likely: u64,
    most: Option<u64>,
}

impl Estimated {
    fn of(state: &State, session: &Session) -> Self {
        let estimate = estimate(state, &session.spec, 0);
        Self { likely: estimate.likely.tokens, most: estimate.tokens_max }
    }
}

#[test]
fn bad_budgets_are_refused_with_what_was_seen() {
    let cases = [
        (Budget::default(), "a budget bounds nothing, give usd, tokens, calls or seconds"),
        (tokens(0), "the tokens of a budget are 0, must be above 0"),
        (
            Budget { soft: Some(1.5), ..tokens(1) },
            "the soft limit of a budget is 1.5, must be above 0, at most 1",
        ),
        (
            Budget { soft: Some(f64::NAN), ..tokens(1) },
            "the soft limit of a budget is NaN, must be above 0, at most 1",
        ),
        (
            Budget { per: Period::Day, ..tokens(1) },
            "the budget of a session comes back after a time, only a tenant's may",
        ),
    ];
    for (budget, message) in cases {
        let error = acme(Some(budget)).check().unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::BUDGET_INVALID, message));
    }
    let free = Budget { usd_nanos: Some(0), ..Budget::default() };
    assert_eq!(acme(Some(free)).check(), Ok(()), "it allows what costs nothing");
    let long = Funding { tenant: "a".repeat(129), ..Funding::default() };
    assert!(long.check().is_err());
    assert!(Funding { tenant: "a\n".to_owned(), ..Funding::default() }.check().is_err());
}

#[test]
fn funding_is_stored_as_plain_data() {
    let funding = Funding {
        within: vec![SessionId::new("parent").unwrap()],
        ..acme(Some(Budget { usd_nanos: Some(5), ..Budget::default() }))
    };
    let mut line = Vec::new();
    Event::BudgetSet(funding.clone()).write_json(&mut line);
    let expected =
        r#"{"kind":"budget_set","tenant":"acme","within":["parent"],"budget":{"usd_nanos":5}}"#;
    assert_eq!(String::from_utf8(line).unwrap(), expected);
    assert_eq!(serde_json::from_str::<Event>(expected).unwrap(), Event::BudgetSet(funding));
}
