//! Approvals: a call waits until a person has said yes to exactly this request, once, here.

use mainspring_session::{
    ApprovalId, CallIndex, CallStatus, Command, Fact, Outcome, Phase, ToolCall,
};

use crate::support::{STORE, Session, agent, asking, error_result, kinds, result};
use crate::{event, fact};

fn acting(tools: &[&str]) -> Session {
    Session::acting(asking(&["small"]), tools)
}

fn run(call: u64) -> Command {
    Command::CallTool { call: CallIndex(call), attempt: 1 }
}

fn ask(call: u64) -> Command {
    Command::AskPolicy { call: CallIndex(call) }
}

#[test]
fn a_tool_that_always_asks_waits_for_a_person_and_orders_nothing() {
    let mut session = Session::asked(asking(&["small"]));
    let answer = fact::calls(0, &["pay"]);
    let events = session.tell(fact::answered(0, 1, answer.clone()));
    let id = event::approval(0, 1, STORE);
    assert_eq!(events, [event::answered(0, 1, answer), event::approval_requested(0, &id)]);
    assert_eq!(session.orders(&events), []);
    assert_eq!(session.statuses(), [CallStatus::Awaiting(id)]);
    assert!(session.state.waits_for_people());
}

#[test]
fn a_granted_call_runs_once_and_its_result_goes_on() {
    let mut session = acting(&["pay"]);
    let id = event::approval(0, 1, STORE);
    let events = session.tell(fact::decided(0, &id, fact::granted()));
    let expected =
        [event::approval_decided(0, &id, fact::granted()), event::tool_started(0, 1, "pay")];
    assert_eq!(events, expected);
    assert_eq!(session.orders(&events), [run(0)]);
    assert!(!session.state.waits_for_people());
    let events = session.tell(fact::returned(0, 1, "paid"));
    assert_eq!(events, [event::tool_finished(0, "paid"), event::calling(1, 1, 0, 3)]);
    assert_eq!(session.last_messages(1), [result("c0", "pay", "paid")]);
}

#[test]
fn a_policy_is_asked_once_for_each_call_and_may_ask_a_person() {
    let mut session = Session::asked(asking(&["small"]));
    let answer = fact::calls(0, &["move", "wire"]);
    let events = session.tell(fact::answered(0, 1, answer.clone()));
    assert_eq!(events, [event::answered(0, 1, answer)]);
    assert_eq!(session.orders(&events), [ask(0), ask(1)]);
    assert!(!session.state.waits_for_people(), "a function is asked, not a person");
    let events = session.tell(fact::policy(0, false));
    assert_eq!(events, [event::tool_started(0, 1, "move")]);
    assert_eq!(session.orders(&events), [run(0)]);
    let id = event::approval(1, 1, STORE);
    let events = session.tell(fact::policy(1, true));
    assert_eq!(events, [event::approval_requested(1, &id)]);
    assert_eq!(session.orders(&events), []);
}

#[test]
fn a_policy_that_answers_twice_or_unasked_has_no_effect() {
    let mut session = acting(&["move", "wire", "pay", "look"]);
    session.tell(fact::policy(0, false));
    session.tell(fact::policy(1, true));
    for call in [0, 1, 2, 3, 99] {
        for needed in [true, false] {
            assert_eq!(session.tell(fact::policy(call, needed)), [], "call {call}");
        }
    }
}

#[test]
fn a_policy_that_was_being_asked_is_asked_again_by_a_new_owner() {
    let (mut session, events) = acting(&["wire"]).reopened();
    assert_eq!(events, [event::epoch_taken()]);
    assert_eq!(session.orders(&events), [ask(0)]);
    session.tell(fact::policy(0, true));
    let events = session.tell(fact::taken(3, STORE));
    assert_eq!(session.orders(&events), [], "it has answered");
}

#[test]
fn a_call_with_wrong_arguments_asks_nobody() {
    let problems = vec![
        fact::problem("tool_arguments", "no amount", Some(0)),
        fact::problem("tool_arguments", "no bank", Some(1)),
    ];
    let mut session = Session::asked(asking(&["small"]));
    let answer = fact::calls(0, &["pay", "wire"]);
    let events = session.tell(fact::checked(0, 1, answer, problems));
    let expected = [
        "model_call_finished",
        "answer_rejected",
        "tool_call_failed",
        "tool_call_failed",
        "model_call_started",
    ];
    assert_eq!(kinds(&events), expected);
}

#[test]
fn a_refused_call_tells_the_model_why_and_never_runs() {
    let mut session = acting(&["pay"]);
    let id = event::approval(0, 1, STORE);
    let events = session.tell(fact::decided(0, &id, fact::denied("too dear")));
    let expected =
        [event::approval_decided(0, &id, fact::denied("too dear")), event::calling(1, 1, 0, 3)];
    assert_eq!(events, expected);
    let told = "tool \"pay\" was not run, a person refused it: too dear";
    assert_eq!(session.last_messages(1), [error_result("c0", "pay", told)]);
}

#[test]
fn a_long_reason_is_cut_like_a_result() {
    let mut spec = asking(&["small"]);
    spec.limits.tool_result_bytes_max = 4;
    let mut session = Session::acting(spec, &["pay"]);
    let id = event::approval(0, 1, STORE);
    let events = session.tell(fact::decided(0, &id, fact::denied("0123456789")));
    let cut = fact::denied("01\n[... 6 bytes cut ...]\n89");
    assert_eq!(events[0], event::approval_decided(0, &id, cut));
}

#[test]
fn edited_arguments_are_those_that_run_under_an_id_of_their_own() {
    let mut session = acting(&["pay"]);
    let id = event::approval(0, 1, STORE);
    let less = r#"{"amount":9}"#;
    let events = session.tell(fact::decided(0, &id, fact::edited(less)));
    let expected = [
        event::approval_decided(0, &id, fact::edited(less)),
        event::tool_started_with(0, 1, "pay", less),
    ];
    assert_eq!(events, expected);
    let call = ToolCall { id: "c0".to_owned(), name: "pay".to_owned(), arguments: less.to_owned() };
    assert_eq!(session.state.calls()[0].call, call);
    assert_ne!(events[1], event::tool_started(0, 1, "pay"), "other arguments, another id");
}

#[test]
fn an_answer_counts_once() {
    let id = event::approval(0, 1, STORE);
    let answers = [fact::granted(), fact::denied("no"), fact::edited("{}")];
    for first in &answers {
        for second in &answers {
            let mut session = acting(&["pay", "order"]);
            session.tell(fact::decided(0, &id, first.clone()));
            let before = session.state.clone();
            assert_eq!(session.tell(fact::decided(0, &id, second.clone())), []);
            assert_eq!(session.state, before, "{first:?}, then {second:?}");
        }
    }
}

#[test]
fn an_answer_to_another_request_has_no_effect() {
    let mut session = acting(&["pay", "order", "wire", "look"]);
    let id = event::approval(0, 1, STORE);
    let others = [
        event::approval(1, 1, STORE),
        event::approval(0, 2, STORE),
        event::approval(0, 1, "store-2"),
        ApprovalId::named(""),
        ApprovalId::named("never asked"),
    ];
    let before = session.state.clone();
    for other in others {
        assert_eq!(session.tell(fact::decided(0, &other, fact::granted())), [], "{other:?}");
    }
    for call in [1, 2, 3, 99] {
        assert_eq!(session.tell(fact::decided(call, &id, fact::granted())), [], "call {call}");
    }
    assert_eq!(session.state, before);
}

#[test]
fn an_answer_after_the_turn_is_refused() {
    let mut session = acting(&["pay"]);
    session.tell(fact::cancel());
    let id = event::approval(0, 1, STORE);
    let decided = fact::decided(0, &id, fact::granted());
    let pair = (session.state.phase.kind(), decided.kind());
    assert!(!mainspring_session::TRANSITIONS.contains(&pair));
}

#[test]
fn a_request_stands_under_a_new_owner_in_the_same_store() {
    let (mut session, events) = acting(&["pay"]).reopened();
    assert_eq!(events, [event::epoch_taken()]);
    let id = event::approval(0, 1, STORE);
    let events = session.tell(fact::decided(0, &id, fact::granted()));
    assert_eq!(kinds(&events), ["approval_decided", "tool_call_started"]);
}

#[test]
fn a_copy_asks_anew_and_the_old_answer_counts_for_nothing_there() {
    for held in [false, true] {
        let mut session = acting(&["pay"]);
        let (old, new) = (event::approval(0, 1, STORE), event::approval(0, 2, "store-2"));
        let (takeover, taken) = match held {
            false => (fact::taken(2, "store-2"), event::taken(2, "store-2")),
            true => (fact::held(2, "store-2"), event::held(2, "store-2")),
        };
        let events = session.tell(takeover);
        assert_eq!(events, [taken, event::approval_requested(0, &new)]);
        assert_ne!(old, new);
        assert_eq!(session.tell(fact::decided(0, &old, fact::granted())), []);
        let events = session.tell(fact::decided(0, &new, fact::granted()));
        assert_eq!(events[0], event::approval_decided(0, &new, fact::granted()));
    }
}

#[test]
fn what_was_granted_and_not_begun_is_asked_anew_in_a_copy_and_in_a_fork() {
    let id = event::approval(0, 1, STORE);
    let granted = || {
        let session = acting(&["pay"]).after(fact::held(2, STORE));
        session.after(fact::decided(0, &id, fact::granted()))
    };
    assert_eq!(granted().statuses(), [CallStatus::Approved]);
    let mut copy = granted();
    let events = copy.tell(fact::taken(3, "store-2"));
    let new = event::approval(0, 3, "store-2");
    assert_eq!(events, [event::taken(3, "store-2"), event::approval_requested(0, &new)]);
    let mut fork = granted();
    let events = fork.tell(fact::forked(None));
    let new = fork.state.approval_id(CallIndex(0));
    assert_eq!(events, [event::forked(3, None), event::approval_requested(0, &new)]);
    assert_eq!(fork.tell(fact::decided(0, &id, fact::granted())), []);
    let mut same = granted();
    let events = same.tell(fact::taken(3, STORE));
    assert_eq!(events, [event::taken(3, STORE), event::tool_started(0, 1, "pay")]);
}

#[test]
fn a_fork_asks_anew_and_neither_answer_counts_for_the_other() {
    let parent = acting(&["pay"]);
    let mut fork = parent.clone();
    let events = fork.tell(fact::forked(None));
    let (old, new) = (event::approval(0, 1, STORE), fork.state.approval_id(CallIndex(0)));
    assert_eq!(events, [event::forked(2, None), event::approval_requested(0, &new)]);
    assert_ne!(old, new);
    assert_eq!(fork.orders(&events), []);
    assert_eq!(fork.tell(fact::decided(0, &old, fact::granted())), []);
    assert_eq!(parent.clone().tell(fact::decided(0, &new, fact::granted())), []);
    let events = fork.tell(fact::decided(0, &new, fact::granted()));
    assert_eq!(kinds(&events), ["approval_decided", "tool_call_started"]);
}

#[test]
fn a_turn_that_waits_for_people_is_not_ended_by_the_time_limit() {
    let mut session = acting(&["pay", "look"]);
    assert!(!session.state.waits_for_people(), "a tool runs too");
    let mut running = session.clone();
    running.tell(Fact::TurnTimedOut);
    assert!(matches!(running.state.outcome, Some(Outcome::Failed(_))));
    session.tell(fact::returned(1, 1, "seen"));
    assert_eq!(session.tell(Fact::TurnTimedOut), []);
    assert!(session.state.is_open());
    let id = event::approval(0, 1, STORE);
    session.tell(fact::decided(0, &id, fact::granted()));
    let events = session.tell(Fact::TurnTimedOut);
    assert_eq!(events.last(), Some(&event::out_of_time()), "it runs now");
}

#[test]
fn a_cancel_while_a_person_is_asked_closes_the_call() {
    let mut session = acting(&["pay", "wire"]);
    let events = session.tell(fact::cancel());
    let stopped = "the session was cancelled";
    let expected = [
        event::cancel_requested(),
        event::tool_stopped(0, 0, "pay", stopped),
        event::tool_stopped(1, 0, "wire", stopped),
        event::cancelled(),
    ];
    assert_eq!(events, expected);
    assert_eq!(session.state.phase, Phase::Ready);
}

#[test]
fn siblings_run_and_end_while_a_person_is_asked() {
    let mut session = Session::asked(asking(&["small"]));
    let answer = fact::calls(0, &["look", "pay", "fetch", "wire"]);
    let events = session.tell(fact::answered(0, 1, answer));
    let expected =
        ["model_call_finished", "tool_call_started", "approval_requested", "tool_call_started"];
    assert_eq!(kinds(&events), expected);
    assert_eq!(session.orders(&events), [run(0), run(2), ask(3)]);
    session.tell(fact::returned(0, 1, "seen"));
    session.tell(fact::policy(3, false));
    session.tell(fact::returned(3, 1, "wired"));
    session.tell(fact::returned(2, 1, "fetched"));
    assert!(session.state.waits_for_people());
    let id = event::approval(1, 1, STORE);
    session.tell(fact::decided(1, &id, fact::denied("no")));
    let told = "tool \"pay\" was not run, a person refused it: no";
    let expected = [
        result("c0", "look", "seen"),
        error_result("c1", "pay", told),
        result("c2", "fetch", "fetched"),
        result("c3", "wire", "wired"),
    ];
    assert_eq!(session.last_messages(4), expected);
}

#[test]
fn a_failed_attempt_is_repeated_without_asking_again() {
    let mut session = acting(&["order"]);
    let id = event::approval(0, 1, STORE);
    session.tell(fact::decided(0, &id, fact::granted()));
    session.tell(fact::raised(0, 1));
    let later = mainspring_session::Moment { at_us: 2_000_000, seed: 0 };
    let events = session.tell_at(Fact::TimerFired, later);
    assert_eq!(events, [event::tool_started(0, 2, "order")]);
}

#[test]
fn the_next_answer_asks_again() {
    let mut session = acting(&["pay"]);
    session.tell(fact::decided(0, &event::approval(0, 1, STORE), fact::granted()));
    session.tell(fact::returned(0, 1, "paid"));
    let events = session.tell(fact::answered(1, 1, fact::calls(1, &["pay"])));
    let id = event::approval(1, 1, STORE);
    assert_eq!(events[1], event::approval_requested(1, &id));
}

#[test]
fn an_agent_that_stopped_asking_still_waits_for_what_was_asked() {
    let mut session = acting(&["pay"]);
    session.spec = agent(&["small"]);
    let (session, events) = session.reopened();
    assert_eq!(events, [event::epoch_taken()]);
    assert!(session.state.waits_for_people());
}
