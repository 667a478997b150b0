//! Forks: a session that begins with what another has done, goes on from there, and does nothing
//! of it again.

use std::collections::BTreeMap;

use mainspring_session::{
    CallIndex, CallStatus, Command, EffectOutcome, Epoch, ErrorCode, Event, Fact, ForkEdit,
    Message, Moment, Part, Phase, State,
};

use crate::support::{NOW, STORE, Session, agent, asking, error_result, kinds, result, verifying};
use crate::{event, fact};

const LATER: Moment = Moment { at_us: NOW.at_us + 60_000_000, seed: 0 };

fn parts(text: &str) -> Vec<Part> {
    vec![Part::Text { text: text.to_owned() }]
}

fn edit_call(call: u64, text: &str) -> Option<ForkEdit> {
    Some(ForkEdit::Call { call: CallIndex(call), text: text.to_owned() })
}

/// A log with every kind of waiting in it: two turns, a retry, an escalation, tools of every
/// effect, approvals, a policy, a crash, an unknown effect, a verdict.
fn rich() -> Session {
    let mut spec = asking(&["small", "large"]);
    spec.verify = true;
    let mut session = Session::asked(spec);
    session.tell(fact::model_failed(0, 1, fact::server_error()));
    session.tell_at(Fact::TimerFired, LATER);
    let wrong = vec![fact::problem("parse", "not JSON", None)];
    session.tell(fact::checked(0, 2, fact::text("{"), wrong));
    let tools = ["look", "fetch", "book", "send", "pay", "wire"];
    session.tell(fact::answered(1, 1, fact::calls(0, &tools)));
    session.tell(fact::accepted());
    session.tell(fact::returned(0, 1, "seen"));
    session.tell(fact::raised(1, 1));
    session.tell_at(Fact::TimerFired, LATER);
    let id = event::approval(4, 1, STORE);
    session.tell(fact::decided(4, &id, fact::granted()));
    session.tell(fact::policy(5, true));
    session.tell(fact::reopened());
    session.tell(fact::resolved(3, EffectOutcome::NotDone));
    session.tell(fact::resolved(4, fact::done("paid")));
    session.tell(fact::returned(1, 3, "fetched"));
    session.tell(fact::returned(2, 2, "booked"));
    session.tell(fact::returned(3, 2, "sent"));
    session.tell(fact::decided(5, &event::approval(5, 1, STORE), fact::denied("no")));
    session.tell(fact::answered(2, 1, fact::text("done")));
    session.tell(fact::accepted());
    session.tell(fact::input("and now?"));
    session.tell(fact::model_failed(3, 1, fact::auth_error()));
    session.tell(fact::answered(4, 1, fact::text("nothing more")));
    session.tell(fact::rejected("too short"));
    session.tell(fact::cancel());
    session
}

fn cut(session: &Session, length: usize) -> Session {
    let mut cut = session.clone();
    cut.log.truncate(length);
    cut.state = State::of(&cut.log);
    cut
}

/// How often each call was started.
fn starts(log: &[Event]) -> BTreeMap<CallIndex, usize> {
    let mut starts = BTreeMap::new();
    for event in log {
        if let Event::ToolCallStarted(started) = event {
            *starts.entry(started.call).or_default() += 1;
        }
    }
    starts
}

fn status_of(state: &State, call: CallIndex) -> Option<CallStatus> {
    state.call(call).map(|call| call.status.clone())
}

#[test]
fn a_fork_at_every_event_goes_on_or_waits_for_people() {
    let whole = rich();
    for length in 1..=whole.log.len() {
        let before = cut(&whole, length);
        let mut fork = before.clone();
        let events = fork.tell(fact::forked(None));
        let name = format!("after {length} events, {:?}", before.state.phase);
        assert_eq!(fork.state.session, Some(fact::forked_id()), "{name}");
        assert_eq!(fork.state.epoch, Epoch(before.state.epoch.0 + 1), "{name}");
        assert_eq!(fork.state.is_open(), goes_on(&before), "{name}");
        let orders = fork.orders(&events);
        let idle = !fork.state.is_open() || fork.state.waits_for_people();
        let ends = [Command::Finish];
        assert!(idle || !orders.is_empty(), "{name}: nothing is ordered");
        assert!(fork.state.is_open() || orders.is_empty() || orders == ends, "{name}");
        assert_eq!(fork.state.messages[..before.state.messages.len()], before.state.messages);
        assert!(before.state.outcome.is_none() || fork.state.outcome == before.state.outcome);
    }
}

/// Whether a fork of the session has something left to do.
fn goes_on(session: &Session) -> bool {
    session.state.is_open() && session.state.phase != Phase::Concluding
}

#[test]
fn each_call_of_a_fork_stands_where_its_effect_lets_it() {
    let whole = rich();
    let mut seen = std::collections::BTreeSet::new();
    for length in 1..=whole.log.len() {
        let before = cut(&whole, length);
        let mut fork = before.clone();
        fork.tell(fact::forked(None));
        let (old, new) = (starts(&before.log), starts(&fork.log));
        for call in before.state.calls() {
            let again = new.get(&call.index) != old.get(&call.index);
            let status = status_of(&fork.state, call.index);
            let name = &call.call.name;
            let tool = fork.spec.tool(name).unwrap();
            seen.insert(format!("{name} {}", name_of(&call.status)));
            match &call.status {
                CallStatus::Finished(_) | CallStatus::Failed(_) | CallStatus::Backoff(_) => {
                    assert!(!again, "{call:?} began again");
                    assert!(status.is_none_or(|status| status == call.status));
                }
                CallStatus::Running if tool.effect.repeatable() => {
                    assert!(again && status == Some(CallStatus::Running), "{call:?}");
                }
                CallStatus::Running | CallStatus::Unknown => {
                    assert!(!again && status == Some(CallStatus::Unknown), "{call:?}");
                }
                CallStatus::Awaiting(_) | CallStatus::Approved => {
                    let id = fork.state.approval_id(call.index);
                    assert!(!again && status == Some(CallStatus::Awaiting(id)), "{call:?}");
                }
                CallStatus::Planned(_) => {
                    let asks = tool.approve != mainspring_session::Approve::Never;
                    assert_eq!(again, !asks, "{call:?}");
                }
            }
        }
    }
    for expected in [
        "look running",
        "look finished",
        "fetch backoff",
        "send running",
        "send unknown",
        "send approved",
        "pay awaiting",
        "pay approved",
        "pay running",
        "wire planned",
        "wire awaiting",
    ] {
        assert!(seen.contains(expected), "{expected} is not in {seen:?}");
    }
}

fn name_of(status: &CallStatus) -> &'static str {
    match status {
        CallStatus::Planned(_) => "planned",
        CallStatus::Awaiting(_) => "awaiting",
        CallStatus::Approved => "approved",
        CallStatus::Running => "running",
        CallStatus::Backoff(_) => "backoff",
        CallStatus::Unknown => "unknown",
        CallStatus::Finished(_) => "finished",
        CallStatus::Failed(_) => "failed",
    }
}

#[test]
fn a_model_call_is_made_anew_with_the_same_step_and_nothing_of_its_attempts() {
    let mut waiting = Session::asked(agent(&["small", "large"]));
    waiting.tell(fact::model_failed(0, 1, fact::server_error()));
    let mut second = waiting.clone();
    second.tell_at(Fact::TimerFired, LATER);
    let lost = second.clone().after(fact::reopened()).after(fact::taken(3, STORE));
    for (mut session, epoch) in [(waiting, 2), (second, 2), (lost, 4)] {
        let events = session.tell(fact::forked(None));
        let expected = [
            event::forked(epoch, None),
            event::route(0, 0, "small", event::FIRST),
            event::calling(0, 1, 0, 1),
        ];
        assert_eq!(events, expected);
        assert_eq!(session.state.lost_attempts, 0);
        assert_eq!(session.state.steps, 1);
    }
}

#[test]
fn the_route_is_decided_anew_for_the_agent_of_the_fork() {
    let mut session = Session::asked(agent(&["small", "large"]));
    session.tell(fact::model_failed(0, 1, fact::auth_error()));
    session.tell(fact::answered(1, 1, fact::calls(0, &["look"])));
    assert_eq!(session.state.tier, 1);
    session.spec = agent(&["another"]);
    let events = session.tell(fact::forked(None));
    assert_eq!(events, [event::forked(2, None), event::tool_started(0, 2, "look")]);
    let events = session.tell(fact::returned(0, 2, "seen"));
    let expected = [
        event::tool_finished(0, "seen"),
        event::route(2, 0, "another", event::ONLY),
        event::calling(2, 1, 0, 3),
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_model_that_failed_in_the_parent_is_tried_again() {
    let failed =
        Session::asked(agent(&["small"])).after(fact::model_failed(0, 1, fact::auth_error()));
    let mut fork = failed.cut_after("model_call_failed");
    let events = fork.tell(fact::forked(None));
    assert_eq!(kinds(&events), ["session_forked", "route_decided", "model_call_started"]);
}

#[test]
fn results_that_are_there_stay_and_the_others_are_made() {
    let session = Session::acting(agent(&["small"]), &["look", "fetch", "send"]);
    let mut fork = session.after(fact::returned(0, 1, "seen"));
    let events = fork.tell(fact::forked(None));
    let expected =
        [event::forked(2, None), event::tool_started(1, 2, "fetch"), event::effect_unknown(2, 1)];
    assert_eq!(events, expected);
    let order = Command::CallTool { call: CallIndex(1), attempt: 2 };
    assert_eq!(fork.orders(&events), [order]);
    fork.tell(fact::returned(1, 2, "fetched"));
    fork.tell(fact::resolved(2, fact::done("sent by the other")));
    let expected = [
        result("c0", "look", "seen"),
        result("c1", "fetch", "fetched"),
        result("c2", "send", "sent by the other"),
    ];
    assert_eq!(fork.last_messages(3), expected);
}

#[test]
fn waits_and_verdicts_go_on_in_a_fork() {
    let mut resting = Session::acting(agent(&["small"]), &["fetch"]).after(fact::raised(0, 1));
    let events = resting.tell(fact::forked(None));
    assert_eq!(resting.orders(&events), [Command::Wait { until_us: 1_050_000 }]);
    let judging = Session::asked(verifying(&["small"]));
    let mut judging = judging.after(fact::answered(0, 1, fact::text("yes")));
    let events = judging.tell(fact::forked(None));
    assert_eq!(judging.orders(&events), [Command::Verify]);
    assert_eq!(judging.tell(fact::accepted()), [event::verified(0), event::finished(0)]);
}

#[test]
fn a_fork_of_a_held_session_runs() {
    let mut session = Session::asked(agent(&["small"])).after(fact::held(2, STORE));
    session.tell(fact::forked(None));
    assert!(!session.state.held);
    assert!(matches!(session.state.phase, Phase::Calling(_)));
}

#[test]
fn a_fork_of_a_fork_counts_on() {
    let mut session = Session::asked(agent(&["small"])).after(fact::forked(None));
    let third = mainspring_session::SessionId::new("s-3").unwrap();
    let Fact::Forked { origin, fingerprint, store, .. } = fact::forked(None) else {
        panic!("a fork");
    };
    let (session_id, edit) = (third.clone(), None);
    let forked =
        Fact::Forked { session: session_id, origin, fingerprint, store, edit, funding: None };
    let events = session.tell(forked);
    let Event::SessionForked(forked) = &events[0] else { panic!("a fork") };
    assert_eq!((&forked.session, &forked.parent), (&third, &fact::forked_id()));
    assert_eq!(forked.epoch, Epoch(3));
}

#[test]
fn an_edited_message_is_what_the_model_reads_from_then_on() {
    let mut session = Session::acting(agent(&["small"]), &["look"]);
    session.tell(fact::returned(0, 1, "seen"));
    session.tell(fact::answered(1, 1, fact::text("a cat")));
    let edited = |index, text| {
        let content = parts(text);
        let mut fork = session.clone();
        let edit = Some(ForkEdit::Message { index, content });
        assert_eq!(fork.tell(fact::forked(edit.clone())), [event::forked(2, edit)]);
        fork.state.messages
    };
    assert_eq!(edited(0, "hello")[0], Message::user("hello"));
    let calls = fact::calls(0, &["look"]).tool_calls;
    let told =
        Message::Assistant { text: "let me see".to_owned(), tool_calls: calls, reasoning: vec![] };
    assert_eq!(edited(1, "let me see")[1], told, "the calls stay, their results follow");
    assert_eq!(edited(2, "a dog")[2], result("c0", "look", "a dog"));
    assert_eq!(
        edited(3, "a dog")[3],
        Message::Assistant { text: "a dog".into(), tool_calls: vec![], reasoning: vec![] }
    );
    assert_eq!(edited(4, "nothing there"), session.state.messages);
    assert_eq!(edited(u32::MAX, "nothing there"), session.state.messages);
}

#[test]
fn an_edited_error_stays_an_error_and_pictures_are_left_out_of_a_text() {
    let mut session = Session::acting(agent(&["small"]), &["look"]).after(fact::raised(0, 1));
    let mut content = parts("one");
    content.push(Part::Image { url: "https://example.org/a.png".to_owned() });
    content.extend(parts("two"));
    session.tell(fact::forked(Some(ForkEdit::Message { index: 2, content })));
    assert_eq!(session.state.messages[2], error_result("c0", "look", "one\ntwo"));
}

#[test]
fn an_edited_call_has_its_result_and_is_not_run() {
    let session = Session::acting(asking(&["small"]), &["send", "pay", "wire", "look"]);
    for (call, tool) in [(0, "send"), (1, "pay"), (2, "wire"), (3, "look")] {
        let mut fork = session.clone();
        let events = fork.tell(fact::forked(edit_call(call, "as if")));
        let finished = CallStatus::Finished("as if".to_owned());
        assert_eq!(status_of(&fork.state, CallIndex(call)), Some(finished), "{tool}");
        let about = |event: &Event| match event {
            Event::ToolCallStarted(started) => started.call == CallIndex(call),
            Event::ApprovalRequested(asked) => asked.call == CallIndex(call),
            Event::EffectUnknown(unknown) => unknown.call == CallIndex(call),
            _ => false,
        };
        assert!(!events.iter().any(about), "{tool}: {events:?}");
        let policy = Command::AskPolicy { call: CallIndex(call) };
        assert!(!fork.orders(&events).contains(&policy), "{tool}");
        let late = fork.tell(fact::returned(call, 1, "really"));
        assert_eq!(late, [event::late_text(call, 1, "really")]);
    }
}

#[test]
fn the_last_edited_call_begins_the_next_step() {
    let session = Session::acting(agent(&["small"]), &["look", "send"]);
    let mut fork = session.after(fact::returned(0, 1, "seen"));
    let events = fork.tell(fact::forked(edit_call(1, "sent")));
    let expected = [
        event::forked(2, edit_call(1, "sent")),
        event::route(1, 0, "small", event::ONLY),
        event::calling(1, 1, 0, 4),
    ];
    assert_eq!(events, expected);
    let expected = [result("c0", "look", "seen"), result("c1", "send", "sent")];
    assert_eq!(fork.last_messages(2), expected);
}

#[test]
fn a_result_that_is_there_can_be_edited_while_its_step_lasts() {
    let session = Session::acting(agent(&["small"]), &["look", "fetch"]);
    let mut fork = session.after(fact::returned(0, 1, "a cat"));
    fork.tell(fact::forked(edit_call(0, "a dog")));
    fork.tell(fact::returned(1, 2, "fetched"));
    assert_eq!(fork.last_messages(2)[0], result("c0", "look", "a dog"));
    let before = fork.state.messages.clone();
    let events = fork.tell(fact::forked(edit_call(0, "a bird")));
    assert_eq!(kinds(&events), ["session_forked", "route_decided", "model_call_started"]);
    assert_eq!(fork.state.messages, before, "its step is over");
}

#[test]
fn a_long_edited_result_is_cut_like_any_other() {
    let mut spec = agent(&["small"]);
    spec.limits.tool_result_bytes_max = 4;
    let mut fork = Session::acting(spec, &["look", "send"]);
    let events = fork.tell(fact::forked(edit_call(0, "0123456789")));
    assert_eq!(events[0], event::forked(2, edit_call(0, "01\n[... 6 bytes cut ...]\n89")));
}

#[test]
fn an_edited_answer_is_taken_instead_and_still_verified() {
    let answer = || Some(ForkEdit::Answer { text: "forty-two".to_owned() });
    let session = Session::asked(verifying(&["small"]));
    let mut fork = session.after(fact::answered(0, 1, fact::text("42")));
    let events = fork.tell(fact::forked(answer()));
    assert_eq!(events, [event::forked(2, answer())]);
    assert_eq!(fork.orders(&events), [Command::Verify]);
    fork.tell(fact::accepted());
    assert_eq!(fork.state.last_text(), Some("forty-two"));
}

#[test]
fn an_edited_answer_whose_text_was_wrong_ends_the_turn() {
    let wrong = vec![fact::problem("parse", "not JSON", None)];
    let session = Session::asked(agent(&["small"]));
    let session = session.after(fact::checked(0, 1, fact::text("{"), wrong));
    let mut fork = session.cut_after("model_call_finished");
    let answer = Some(ForkEdit::Answer { text: "{}".to_owned() });
    let events = fork.tell(fact::forked(answer.clone()));
    assert_eq!(events, [event::forked(2, answer), event::finished(0)]);
    assert_eq!(fork.state.last_text(), Some("{}"));
}

#[test]
fn an_edited_text_does_not_mend_the_calls_of_an_answer() {
    let wrong = vec![fact::problem("tool_unknown", "no tool \"lok\"", Some(0))];
    let session = Session::asked(agent(&["small"]));
    let answer = fact::calls(0, &["lok", "look"]);
    let session = session.after(fact::checked(0, 1, answer, wrong));
    let mut fork = session.cut_after("model_call_finished");
    let events = fork.tell(fact::forked(Some(ForkEdit::Answer { text: "so".to_owned() })));
    let expected = ["session_forked", "answer_rejected", "tool_call_failed", "tool_call_started"];
    assert_eq!(kinds(&events), expected);
    assert!(matches!(&fork.state.calls()[0].status, CallStatus::Failed(error)
        if error.code == ErrorCode::TOOL_UNKNOWN));
}

#[test]
fn an_edited_text_does_not_mend_an_answer_whose_calls_nobody_has_looked_at() {
    let wrong = vec![fact::problem("finish_reason", "it was cut off", None)];
    let session = Session::asked(agent(&["small"]));
    let session = session.after(fact::checked(0, 1, fact::calls(0, &["look"]), wrong));
    let mut fork = session.cut_after("model_call_finished");
    let events = fork.tell(fact::forked(Some(ForkEdit::Answer { text: "so".to_owned() })));
    let expected = ["session_forked", "answer_rejected", "route_decided", "model_call_started"];
    assert_eq!(kinds(&events), expected);
}

#[test]
fn an_edit_of_what_is_not_there_changes_nothing() {
    for edit in [ForkEdit::Answer { text: "x".to_owned() }, edit_call(7, "x").unwrap()] {
        let session = Session::acting(agent(&["small"]), &["look"]);
        let mut fork = session.clone();
        fork.tell(fact::forked(Some(edit)));
        let mut plain = session;
        plain.tell(fact::forked(None));
        assert_eq!(fork.state, plain.state);
    }
}

#[test]
fn a_fork_between_turns_takes_the_next_input() {
    let session = Session::asked(agent(&["small"])).after(fact::answered(0, 1, fact::text("yes")));
    let mut fork = session.after(fact::forked(None));
    assert_eq!(fork.state.outcome, Some(mainspring_session::Outcome::Finished));
    let events = fork.tell(fact::input("why?"));
    assert_eq!(events[2], event::calling(1, 1, 0, 3));
}
