//! Which model a step goes to: what a decision records, where it is made anew, and what it knows.

use mainspring_session::{
    AgentSpec, Budget, Check, CheckFinding, CompactionMethod, CompactionReason, ContextCompacted,
    ErrorCode, Event, Fact, Failure, Funding, Message, Moment, Price, RouteDecision, RouteSpec,
    StepClass, step_class,
};

use crate::support::{NOW, Session, agent, judged, kinds, verifying};
use crate::{event, fact};

fn priced(mut spec: AgentSpec, small_usd: f64) -> AgentSpec {
    let price = |usd: f64| Price {
        input_usd: usd,
        output_usd: 4.0 * usd,
        cached_usd: Some(usd / 10.0),
        ..Price::default()
    };
    spec.models[0].price = Some(price(small_usd));
    spec.models[1].price = Some(price(10.0));
    spec
}

/// An agent that decides without chance.
fn routed(mut spec: AgentSpec) -> AgentSpec {
    spec.route.get_or_insert_default().policy.explore = 0.0;
    spec
}

fn decisions(log: &[Event]) -> Vec<&RouteDecision> {
    let made = log.iter().filter_map(|event| match event {
        Event::RouteDecided(decided) => decided.decision.as_deref(),
        _ => None,
    });
    made.collect()
}

fn classes(log: &[Event]) -> Vec<Option<StepClass>> {
    let started = log.iter().filter_map(|event| match event {
        Event::ModelCallStarted(started) => Some(started.class),
        _ => None,
    });
    started.collect()
}

fn at(us: i64) -> Moment {
    Moment { at_us: NOW.at_us + us, ..NOW }
}

#[test]
fn an_agent_with_one_model_decides_nothing_and_records_no_class() {
    let session = Session::asked(agent(&["small"])).after(fact::answered(0, 1, fact::text("yes")));
    assert!(decisions(&session.log).is_empty());
    assert_eq!(classes(&session.log), [None]);
    assert!(session.state.route.tiers.is_empty());
}

#[test]
fn a_decision_records_class_models_and_chance() {
    let session = Session::asked(priced(routed(agent(&["small", "large"])), 1.0));
    let made = decisions(&session.log);
    let [made] = made.as_slice() else { panic!("one decision: {made:?}") };
    assert_eq!((made.class, made.current, made.boundary), (StepClass::Plan, None, true));
    assert_eq!((made.decision.tier, made.decision.propensity), (0, 1.0));
    let names: Vec<_> = made.decision.candidates.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["small", "large"]);
    assert!(made.decision.candidates.iter().all(|it| it.cost_usd.is_some()));
}

#[test]
fn a_conversation_stays_on_its_model_while_tools_are_called() {
    let mut session = Session::acting(routed(agent(&["small", "large"])), &["look"]);
    let events = session.tell(fact::returned(0, 1, "seen"));
    assert_eq!(kinds(&events), ["tool_call_finished", "model_call_started"]);
    assert_eq!(classes(&session.log), [Some(StepClass::Plan), Some(StepClass::ToolArgs)]);
}

#[test]
fn after_a_step_for_which_the_next_model_was_asked_it_is_decided_anew() {
    let mut session = Session::asked(routed(verifying(&["small", "large"])));
    session.tell(fact::answered(0, 1, fact::calls(0, &["look"])));
    session.tell(fact::rejected("no"));
    session.tell(fact::answered(1, 1, fact::calls(0, &["look"])));
    session.tell(fact::accepted());
    let events = session.tell(fact::returned(0, 1, "seen"));
    assert_eq!(kinds(&events), ["tool_call_finished", "route_decided", "model_call_started"]);
    let made = decisions(&session.log);
    assert_eq!(made.last().map(|made| made.current), Some(Some(1)));
    assert_eq!(session.state.tier, 0, "the small model goes on");
    // One that fails is replaced for the whole turn.
    let mut session = Session::asked(routed(agent(&["small", "large"])));
    session.tell(fact::model_failed(0, 1, fact::auth_error()));
    session.tell(fact::answered(1, 1, fact::calls(0, &["look"])));
    let events = session.tell(fact::returned(0, 1, "seen"));
    assert_eq!(kinds(&events), ["tool_call_finished", "model_call_started"]);
}

#[test]
fn a_switch_is_weighed_against_the_cache_that_it_loses() {
    // The large model has read the conversation, the small one has not: nothing is saved.
    let mut spec = priced(routed(agent(&["small", "large"])), 9.0);
    spec.route.as_mut().unwrap().policy.start.insert(StepClass::Plan, 1);
    spec.instructions = "word ".repeat(20_000);
    let mut session = Session::asked(spec);
    assert_eq!(session.state.tier, 1);
    session.tell(fact::having_read(fact::answered(0, 1, fact::text("yes")), 30_000));
    session.spec.route.as_mut().unwrap().policy.start.clear();
    session.tell_at(fact::input("and?"), at(60_000_000));
    let made = decisions(&session.log);
    let gate = made[1].decision.gate.expect("it was weighed");
    assert!(gate.held && gate.regret_usd > gate.gain_usd, "{gate:?}");
    assert_eq!((session.state.tier, made[1].boundary), (1, false));
    // Five minutes later the cache is gone, and with it the reason to stay.
    session.tell_at(fact::answered(1, 1, fact::text("yes")), at(61_000_000));
    session.tell_at(fact::input("and?"), at(360_000_000));
    let made = decisions(&session.log);
    assert_eq!((session.state.tier, made[2].boundary), (0, true));
}

#[test]
fn a_small_model_that_is_not_worth_its_price_is_not_asked_first_any_more() {
    let turns = |small_usd: f64| {
        let mut session = Session::asked(priced(routed(verifying(&["small", "large"])), small_usd));
        let (mut step, mut asked) = (0, Vec::new());
        for _ in 0..4 {
            asked.push(session.state.tier);
            if session.state.tier == 0 {
                session.tell(fact::answered(step, 1, fact::text("no")));
                session.tell(fact::rejected("no"));
                step += 1;
            }
            session.tell(fact::answered(step, 1, fact::text("yes")));
            session.tell(fact::accepted());
            session.tell(fact::input("more"));
            step += 1;
        }
        asked
    };
    assert_eq!(turns(5.0), [0, 1, 1, 1], "half the price, never right");
    assert_eq!(turns(0.01), [0, 0, 0, 0], "it costs next to nothing");
}

#[test]
fn the_class_is_the_users_word_or_follows_from_agent_and_step() {
    let text_only = |schema: bool| {
        let mut spec = agent(&["small", "large"]);
        spec.tools.clear();
        spec.output_schema =
            schema.then(|| serde_json::value::RawValue::from_string("{}".to_owned()).unwrap());
        spec
    };
    let class = |session: &Session| step_class(&session.state, &session.spec);
    assert_eq!(class(&Session::asked(text_only(false))), StepClass::Answer);
    assert_eq!(class(&Session::asked(text_only(true))), StepClass::Extract);
    let mut chatting = Session::asked(text_only(false));
    chatting.tell(fact::answered(0, 1, fact::text("yes")));
    chatting.tell(fact::input("more"));
    assert_eq!(class(&chatting), StepClass::Chat);
    let labelled = AgentSpec { step_class: Some(StepClass::Code), ..agent(&["small", "large"]) };
    assert_eq!(class(&Session::asked(labelled.clone())), StepClass::Code);
    let mut session = Session::started(labelled);
    session.tell(fact::classed("go", StepClass::Judge));
    assert_eq!(class(&session), StepClass::Judge);
}

#[test]
fn an_answer_that_its_own_text_speaks_against_goes_to_the_next_model() {
    let mut session = Session::asked(routed(agent(&["small", "large"])));
    let again = "the same words go round and ".repeat(40);
    let events = session.tell(fact::answered(0, 1, fact::text(&again)));
    let Event::AnswerRejected(rejected) = &events[1] else { panic!("{events:?}") };
    assert_eq!(rejected.problems[0].check, "score");
    assert_eq!(session.state.tier, 1);
    // The largest model has nobody to go to, so its text is not looked at.
    let events = session.tell(fact::answered(1, 1, fact::text(&again)));
    assert_eq!(kinds(&events), ["model_call_finished", "session_finished"]);
}

#[test]
fn arguments_that_occur_nowhere_speak_against_a_call() {
    let mut session = Session::asked(routed(agent(&["small", "large"])));
    let mut answer = fact::calls(0, &["send"]);
    answer.tool_calls[0].arguments = r#"{"to":"Ada Lovelace","amount":4711}"#.to_owned();
    let events = session.tell(fact::answered(0, 1, answer.clone()));
    let Event::AnswerRejected(rejected) = &events[1] else { panic!("{events:?}") };
    assert_eq!(rejected.problems[0].check, "score");
    let mut session = Session::started(routed(agent(&["small", "large"])));
    session.tell(fact::input("send 4711 to Ada Lovelace"));
    let events = session.tell(fact::answered(0, 1, answer));
    assert_eq!(kinds(&events), ["model_call_finished", "tool_call_started"]);
}

#[test]
fn checks_by_models_follow_all_others_and_stop_at_the_first_that_refuses() {
    let mut spec = judged(&["small", "large"]);
    spec.verify = true;
    let mut session = Session::asked(spec);
    let events = session.tell(fact::answered(0, 1, fact::text("yes")));
    assert_eq!(kinds(&events), ["model_call_finished"], "the user's function comes first");
    let events = session.tell(fact::accepted());
    let agreement = event::check_started(0, Check::Agreement, "small", 2);
    assert_eq!(events, [event::verified(0), agreement]);
    let events = session.tell(fact::found(0, Check::Agreement, 0.0));
    assert_eq!(
        kinds(&events),
        ["check_finished", "answer_rejected", "route_decided", "model_call_started"]
    );
    // The larger model is not checked by others.
    session.tell(fact::answered(1, 1, fact::text("yes")));
    let events = session.tell(fact::accepted());
    assert_eq!(events, [event::verified(1), event::finished(1)]);
}

#[test]
fn what_a_check_costs_is_the_sessions() {
    let mut spec = judged(&["small", "large"]);
    let price = Price { input_usd: 1_000_000.0, ..Price::default() };
    spec.route.as_mut().unwrap().judge.as_mut().unwrap().price = Some(price);
    let mut session = Session::asked(spec);
    session.tell(fact::answered(0, 1, fact::text("yes")));
    session.tell(fact::found(0, Check::Agreement, 1.0));
    let before = (session.state.cost_usd, session.state.usage.input_tokens);
    session.tell(fact::found(0, Check::Judge, 1.0));
    let after = (session.state.cost_usd, session.state.usage.input_tokens);
    assert_eq!((after.0 - before.0, after.1 - before.1), (10.0, 10));
    assert_eq!(session.state.turn_usage, session.state.usage);
}

#[test]
fn a_budget_pays_for_checks_before_they_are_made() {
    let mut spec = judged(&["small", "large"]);
    let price = Price { input_usd: 1.0, output_usd: 4.0, ..Price::default() };
    spec.models.iter_mut().for_each(|model| model.price = Some(price));
    spec.route.as_mut().unwrap().judge.as_mut().unwrap().price = Some(price);
    let budget = Budget { calls: Some(10), ..Budget::default() };
    let funding = Funding { budget: Some(budget), ..Funding::default() };
    let mut session = Session::started(spec).after(fact::funded(funding));
    session.tell(fact::input("hi"));
    session.tell(fact::answered(0, 1, fact::text("yes")));
    assert_eq!(session.state.spending.spent.calls, 1);
    let reserved = session.state.spending.reserved.expect("it is paid for beforehand");
    assert_eq!(reserved.calls, 2, "two further answers");
    session.tell(fact::found(0, Check::Agreement, 1.0));
    assert_eq!(session.state.spending.spent.calls, 3);
    assert_eq!(session.state.spending.reserved.map(|reserved| reserved.calls), Some(1));
    // A judge that was refused before it was asked has used nothing.
    let error = Some(Failure::new(ErrorCode::BUDGET_EXHAUSTED, "nothing is left"));
    let finding = CheckFinding { error, ..CheckFinding::default() };
    let events = session.tell(Fact::Checked { step: 0, check: Check::Judge, finding });
    assert_eq!(events.last(), Some(&event::finished(0)));
    let spending = &session.state.spending;
    assert_eq!((spending.spent.calls, spending.reserved), (3, None));
}

#[test]
fn a_compaction_opens_the_route() {
    let mut session = Session::acting(routed(agent(&["small", "large"])), &["look"]);
    let compacted = ContextCompacted {
        step: 1,
        method: CompactionMethod::Drop,
        reason: CompactionReason::Window,
        kept: vec![(0, 1)],
        trimmed: Vec::new(),
        summary: None,
        tokens_before: 10,
        tokens_after: 5,
        tokens_target: 5,
    };
    assert!(session.state.routed);
    session.state.fold(&Event::ContextCompacted(compacted));
    assert!(!session.state.routed);
}

#[test]
fn tool_calls_are_not_judged() {
    let mut session = Session::asked(judged(&["small", "large"]));
    session.tell(fact::answered(0, 1, fact::calls(0, &["look"])));
    let events = session.tell(fact::found(0, Check::Agreement, 1.0));
    assert_eq!(kinds(&events), ["check_finished", "tool_call_started"]);
}

#[test]
fn a_check_that_the_agent_no_longer_has_is_ended_by_whoever_is_asked() {
    let mut session = Session::asked(judged(&["small", "large"]));
    session.tell(fact::answered(0, 1, fact::text("yes")));
    session.spec.route = None;
    let (mut session, events) = session.reopened();
    let order = mainspring_session::Command::Check { step: 0, check: Check::Agreement };
    assert_eq!(session.orders(&events), [order]);
    let events = session.tell(fact::not_found(0, Check::Agreement));
    let judge = event::check_started(0, Check::Judge, "", 0);
    assert_eq!(events, [event::not_found(0, Check::Agreement), judge]);
    let events = session.tell(fact::not_found(0, Check::Judge));
    assert_eq!(events.last(), Some(&event::finished(0)));
}

#[test]
fn what_was_taken_back_leaves_room_for_the_next_answer() {
    let mut session = Session::asked(routed(agent(&["small", "large"])));
    let wrong = || vec![fact::problem("parse", "not JSON", None)];
    session.tell(fact::checked(0, 1, fact::text("{"), wrong()));
    assert_eq!((session.state.messages.len(), session.state.settled_messages()), (3, 1));
    session.tell(fact::checked(1, 1, fact::text("{{"), wrong()));
    assert_eq!((session.state.messages.len(), session.state.route.rewinds), (1, 1));
    session.tell(fact::answered(2, 1, fact::text("{}")));
    let text = "{}".to_owned();
    let answer = Message::Assistant { text, tool_calls: Vec::new(), reasoning: Vec::new() };
    assert_eq!(session.state.messages, [Message::user("hi"), answer]);
    assert_eq!(session.state.settled_messages(), 2);
}

#[test]
fn a_route_of_other_models_forgets_what_was_known_of_the_old_ones() {
    let mut session = Session::asked(routed(agent(&["small", "large"])));
    session.tell(fact::model_failed(0, 1, fact::auth_error()));
    session.tell(fact::answered(1, 1, fact::text("yes")));
    assert_eq!(session.state.route.tiers.len(), 2);
    let other = mainspring_session::BlobHash::of(b"another agent");
    session.tell(fact::changed(2, other));
    assert!(session.state.route.tiers.is_empty());
}

#[test]
fn trials_are_made_as_often_as_the_policy_says_and_less_where_they_are_dear() {
    let tried = |small_usd: f64, explore: f64| {
        let mut spec = priced(agent(&["small", "large"]), small_usd);
        let mut route = RouteSpec::default();
        route.policy.explore = explore;
        spec.route = Some(Box::new(route));
        let explored = |seed: u64| {
            let mut session = Session::started(spec.clone());
            session.tell_at(fact::input("hi"), Moment { seed, ..NOW });
            decisions(&session.log)[0].decision.explored
        };
        (0..4000).filter(|seed| explored(*seed)).count()
    };
    let plain = tried(9.0, 0.03);
    assert!((80..160).contains(&plain), "3 % of 4000: {plain}");
    let dear = tried(0.1, 0.03);
    assert!((4..26).contains(&dear), "a hundred times the price: {dear}");
    assert_eq!(tried(9.0, 0.0), 0);
}
