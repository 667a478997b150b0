//! Checked answers: the next model, the repair, the user's verdict.

use mainspring_session::{
    Answer, Command, ErrorCode, Event, Failure, Message, Outcome, Phase, Problem, RejectAction,
    RouteSpec,
};

use crate::support::{Session, agent, error_result, verifying};
use crate::{event, fact};

/// An answer with a problem of each kind.
fn wrong_answers() -> Vec<(Answer, Problem)> {
    let whole = |check: &str| {
        let problem = fact::problem(check, &format!("{check} is wrong"), None);
        (fact::text("hm"), problem)
    };
    let in_call = |check: &str| {
        let problem = fact::problem(check, &format!("{check} is wrong"), Some(0));
        (fact::calls(0, &["look"]), problem)
    };
    vec![
        whole("finish_reason"),
        whole("parse"),
        whole("empty"),
        whole("output_schema"),
        in_call("tool_unknown"),
        in_call("tool_arguments"),
    ]
}

fn told(problem: &Problem) -> String {
    format!("the answer was rejected: {}", problem.message)
}

#[test]
fn an_answer_that_was_cut_off_goes_to_the_next_model_which_is_asked_the_same() {
    let problem = fact::problem("finish_reason", "it was cut off", None);
    let mut session = Session::asked(agent(&["small", "large"]));
    let problems = vec![problem.clone()];
    let events = session.tell(fact::checked(0, 1, fact::text("hm"), problems.clone()));
    let expected = [
        event::checked(0, 1, fact::text("hm"), problems.clone()),
        event::rejected(0, problems, RejectAction::Escalate),
        event::route(1, 1, "large", &told(&problem)),
        event::calling(1, 1, 1, 1),
    ];
    assert_eq!(events, expected);
    assert_eq!(session.state.messages, [Message::user("hi")]);
    assert_eq!(session.state.tool_call_count, 0);
}

#[test]
fn a_mistake_of_form_is_mended_once_before_the_next_model_is_asked_which_sees_none_of_it() {
    for (answer, problem) in wrong_answers().into_iter().skip(1) {
        let mut session = Session::asked(agent(&["small", "large"]));
        let problems = vec![problem.clone()];
        let sent_back = 3 + u32::try_from(answer.tool_calls.len()).unwrap();
        let events = session.tell(fact::checked(0, 1, answer.clone(), problems.clone()));
        let expected = [
            event::checked(0, 1, answer.clone(), problems.clone()),
            event::sent_back(0, problems.clone()),
            event::calling(1, 1, 0, sent_back),
        ];
        assert_eq!(events, expected);
        let again = match answer.tool_calls.len() {
            0 => answer,
            _ => fact::calls(1, &["look"]),
        };
        let events = session.tell(fact::checked(1, 1, again.clone(), problems.clone()));
        let expected = [
            event::checked(1, 1, again, problems.clone()),
            event::rejected(1, problems, RejectAction::Escalate),
            event::route(2, 1, "large", &told(&problem)),
            event::calling(2, 1, 1, 1),
        ];
        assert_eq!(events, expected);
        assert_eq!(session.state.messages, [Message::user("hi")]);
        assert_eq!(session.state.repairs, 0, "those of the largest model are not used up");
    }
}

#[test]
fn the_next_model_sees_the_draft_where_the_agent_says_so() {
    let mut spec = agent(&["small", "large"]);
    spec.route = Some(Box::new(RouteSpec { show_draft: true, ..RouteSpec::default() }));
    let mut session = Session::asked(spec);
    let wrong = vec![fact::problem("finish_reason", "it was cut off", None)];
    let events = session.tell(fact::checked(0, 1, fact::text("hm"), wrong));
    assert_eq!(events.last(), Some(&event::calling(1, 1, 1, 3)));
    let expected = [
        Message::user("hi"),
        Message::Assistant { text: "hm".to_owned(), tool_calls: Vec::new(), reasoning: Vec::new() },
        Message::user("Your answer was rejected: it was cut off. Answer again."),
    ];
    assert_eq!(session.state.messages, expected);
}

#[test]
fn two_models_work_at_a_step_and_the_second_mends_its_answer() {
    let mut session = Session::asked(agent(&["a", "b", "c"]));
    let wrong = || vec![fact::problem("parse", "not JSON", None)];
    let texts = ["{", "{{", "{{{", "{{{{", "{{{{{"];
    for (step, text) in (0..).zip(texts) {
        session.tell(fact::checked(step, 1, fact::text(text), wrong()));
    }
    let actions = session.log.iter().filter_map(|event| match event {
        Event::AnswerRejected(rejected) => Some(rejected.action),
        _ => None,
    });
    let (repair, escalate) = (RejectAction::Repair, RejectAction::Escalate);
    let expected = [repair, escalate, repair, repair, RejectAction::Fail];
    assert_eq!(actions.collect::<Vec<_>>(), expected);
    assert_eq!(session.state.tier, 1);
    let error = Failure::new(ErrorCode::ANSWER_REJECTED, "the answer was rejected: not JSON");
    assert_eq!(session.state.outcome, Some(Outcome::Failed(error)));
}

#[test]
fn without_repairs_a_mistake_of_form_goes_to_the_next_model_at_once() {
    let mut spec = agent(&["small", "large"]);
    spec.limits.repairs_max = 0;
    let mut session = Session::asked(spec);
    let wrong = || vec![fact::problem("parse", "not JSON", None)];
    let events = session.tell(fact::checked(0, 1, fact::text("{"), wrong()));
    assert_eq!(events[1], event::rejected(0, wrong(), RejectAction::Escalate));
}

#[test]
fn a_structured_answer_is_mended_and_then_given_up() {
    let mut session = Session::asked(agent(&["small"]));
    let wrong = || {
        vec![
            fact::problem("output_schema", "\"age\" is missing", None),
            fact::problem("output_schema", "\"name\" is no string", None),
        ]
    };
    for step in 0..2 {
        let events = session.tell(fact::checked(step, 1, fact::text("{}"), wrong()));
        assert_eq!(events[1], event::rejected(step, wrong(), RejectAction::Repair));
    }
    assert_eq!(session.state.repairs, 2);
    let events = session.tell(fact::checked(2, 1, fact::text("{}"), wrong()));
    let message = "the answer was rejected: \"age\" is missing; \"name\" is no string";
    let error = Failure::new(ErrorCode::ANSWER_REJECTED, message);
    let expected = [
        event::checked(2, 1, fact::text("{}"), wrong()),
        event::rejected(2, wrong(), RejectAction::Fail),
        event::failed(error.clone()),
    ];
    assert_eq!(events, expected);
    assert_eq!(session.state.outcome, Some(Outcome::Failed(error)));
}

#[test]
fn a_mended_answer_ends_the_turn_and_the_next_turn_may_repair_again() {
    let mut session = Session::asked(agent(&["small"]));
    let wrong = || vec![fact::problem("parse", "not JSON", None)];
    session.tell(fact::checked(0, 1, fact::text("{"), wrong()));
    session.tell(fact::answered(1, 1, fact::text("{}")));
    assert_eq!(session.state.outcome, Some(Outcome::Finished));
    assert_eq!(session.state.last_text(), Some("{}"));
    session.tell(fact::input("more"));
    assert_eq!(session.state.repairs, 0);
}

#[test]
fn a_rejected_answer_with_tool_calls_goes_back_with_every_call_answered() {
    let mut session = Session::asked(agent(&["small"]));
    let problems = vec![
        fact::problem("finish_reason", "the answer was cut off", None),
        fact::problem("tool_arguments", "not JSON", Some(1)),
    ];
    let answer = fact::calls(0, &["look", "send"]);
    let events = session.tell(fact::checked(0, 1, answer.clone(), problems));
    assert_eq!(events[2], event::calling(1, 1, 0, 5));
    let expected = [
        Message::Assistant {
            text: String::new(),
            tool_calls: answer.tool_calls,
            reasoning: vec![],
        },
        error_result("c0", "look", "not run: the answer was rejected"),
        error_result("c1", "send", "not run: the answer was rejected"),
        Message::user("Your answer was rejected: the answer was cut off; not JSON. Answer again."),
    ];
    assert_eq!(session.last_messages(4), expected);
    assert_eq!(session.state.tool_call_count, 2, "their positions are used up");
}

#[test]
fn a_verdict_is_asked_for_only_where_the_checks_found_nothing() {
    let mut session = Session::asked(verifying(&["small", "large"]));
    let wrong = vec![fact::problem("empty", "the answer is empty", None)];
    let events = session.tell(fact::checked(0, 1, fact::text(""), wrong));
    assert!(!session.orders(&events).contains(&Command::Verify));
    // Sent back once.
    let events = session.tell(fact::answered(1, 1, fact::text("yes")));
    assert_eq!(events, [event::unverified(1, 1, fact::text("yes"))]);
    assert_eq!(session.orders(&events), [Command::Verify]);
}

#[test]
fn a_rejection_by_the_user_goes_to_the_next_model_and_then_back_for_repair() {
    let mut session = Session::asked(verifying(&["small", "large"]));
    session.tell(fact::answered(0, 1, fact::text("42")));
    let short = || vec![fact::problem("verify", "too short", None)];
    let expected = [
        event::rejected(0, short(), RejectAction::Escalate),
        event::route(1, 1, "large", "the answer was rejected: too short"),
        event::calling(1, 1, 1, 1),
    ];
    assert_eq!(session.tell(fact::rejected("too short")), expected);
    session.tell(fact::answered(1, 1, fact::text("43")));
    let expected = [event::rejected(1, short(), RejectAction::Repair), event::calling(2, 1, 1, 3)];
    assert_eq!(session.tell(fact::rejected("too short")), expected);
    session.tell(fact::answered(2, 1, fact::text("forty-four")));
    let expected = [event::verified(2), event::finished(2)];
    assert_eq!(session.tell(fact::accepted()), expected);
    assert_eq!(session.state.last_text(), Some("forty-four"));
}

#[test]
fn accepted_tool_calls_start_after_the_verdict_and_not_before() {
    let mut session = Session::asked(verifying(&["small"]));
    let answer = fact::calls(0, &["send"]);
    let events = session.tell(fact::answered(0, 1, answer.clone()));
    assert_eq!(events, [event::unverified(0, 1, answer)]);
    let expected = [event::verified(0), event::tool_started(0, 1, "send")];
    assert_eq!(session.tell(fact::accepted()), expected);
}

#[test]
fn tool_calls_that_the_user_rejects_never_run() {
    let mut session = Session::asked(verifying(&["small"]));
    session.tell(fact::answered(0, 1, fact::calls(0, &["send"])));
    let events = session.tell(fact::rejected("not that"));
    let problem = vec![fact::problem("verify", "not that", None)];
    let expected = [event::rejected(0, problem, RejectAction::Repair), event::calling(1, 1, 0, 4)];
    assert_eq!(events, expected);
    assert!(matches!(session.state.phase, Phase::Calling(_)));
}

#[test]
fn without_repairs_the_first_rejection_ends_the_turn() {
    let mut spec = verifying(&["small"]);
    spec.limits.repairs_max = 0;
    let mut session = Session::asked(spec);
    session.tell(fact::answered(0, 1, fact::text("42")));
    session.tell(fact::rejected("too short"));
    let message = "the answer was rejected: too short";
    let error = Failure::new(ErrorCode::ANSWER_REJECTED, message);
    assert_eq!(session.state.outcome, Some(Outcome::Failed(error)));
    assert_eq!(session.state.messages, [Message::user("hi")]);
}
