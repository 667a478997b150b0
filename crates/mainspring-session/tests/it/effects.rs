//! Effects that may or may not have happened: who finds out, what follows, and the id that lets the
//! other side recognise a repetition.

use mainspring_session::{
    CallIndex, CallStatus, Command, EffectId, EffectOutcome, Event, Fact, ForkEdit, Moment,
};

use crate::support::{NOW, STORE, Session, agent, asking, error_result, kinds, result, session_id};
use crate::{event, fact};

fn reconcile(call: u64) -> Command {
    Command::Reconcile { call: CallIndex(call) }
}

fn undecided() -> EffectOutcome {
    EffectOutcome::Undecided { message: "the bank does not answer".to_owned() }
}

/// A session whose unsafe call was lost with its process.
fn lost() -> Session {
    Session::acting(agent(&["small"]), &["send"]).reopened().0
}

/// The same with a call whose tool has a function that finds out.
fn lost_payment() -> (Session, Vec<Event>) {
    let session = Session::acting(asking(&["small"]), &["pay"]);
    let id = event::approval(0, 1, STORE);
    session.after(fact::decided(0, &id, fact::granted())).reopened()
}

/// The effect id of every start of a call, oldest first.
fn ids(session: &Session, call: u64) -> Vec<EffectId> {
    let started = |event: &Event| match event {
        Event::ToolCallStarted(started) if started.call == CallIndex(call) => {
            Some(started.effect_id.clone())
        }
        _ => None,
    };
    session.log.iter().filter_map(started).collect()
}

#[test]
fn an_unsafe_call_is_unknown_after_a_takeover_and_nothing_else_changes() {
    let session = lost();
    assert_eq!(session.statuses(), [CallStatus::Unknown]);
    assert!(session.state.waits_for_people() && session.state.is_open());
    assert_eq!(session.state.calls()[0].attempt, 1);
    assert_eq!(session.state.messages.len(), 2);
}

#[test]
fn an_unknown_effect_stays_unknown_over_takeovers() {
    let mut session = lost();
    for epoch in 3..6 {
        let events = session.tell(fact::taken(epoch, STORE));
        assert_eq!(events, [event::taken(epoch, STORE)]);
    }
    let events = session.tell(fact::taken(6, "store-2"));
    assert_eq!(events, [event::taken(6, "store-2")], "a copy has nothing to ask anew");
}

#[test]
fn a_result_that_is_done_goes_to_the_model_as_if_it_had_returned() {
    let mut session = lost();
    let events = session.tell(fact::resolved(0, fact::done("sent at noon")));
    let expected =
        [event::effect_resolved(0, fact::done("sent at noon")), event::calling(1, 1, 0, 3)];
    assert_eq!(events, expected);
    assert_eq!(session.last_messages(1), [result("c0", "send", "sent at noon")]);
}

#[test]
fn what_was_not_done_is_begun_again_with_the_same_id() {
    let mut session = lost();
    let events = session.tell(fact::resolved(0, EffectOutcome::NotDone));
    let not_done = event::effect_resolved(0, EffectOutcome::NotDone);
    assert_eq!(events, [not_done, event::tool_started(0, 2, "send")]);
    let order = Command::CallTool { call: CallIndex(0), attempt: 2 };
    assert_eq!(session.orders(&events), [order]);
    let id = EffectId::derive(&session_id(), CallIndex(0), "send", "{}");
    assert_eq!(ids(&session, 0), [id.clone(), id]);
    session.tell(fact::returned(0, 2, "sent"));
    assert_eq!(session.last_messages(1), [result("c0", "send", "sent")]);
}

#[test]
fn what_is_given_up_is_an_error_for_the_model() {
    let mut session = lost();
    let events = session.tell(fact::resolved(0, fact::given_up("nobody knows")));
    assert_eq!(kinds(&events), ["effect_resolved", "model_call_started"]);
    assert_eq!(session.last_messages(1), [error_result("c0", "send", "nobody knows")]);
}

#[test]
fn what_a_function_cannot_find_out_is_recorded_and_a_person_decides() {
    let (mut session, _) = lost_payment();
    let events = session.tell(fact::resolved(0, undecided()));
    assert_eq!(events, [event::effect_resolved(0, undecided())]);
    assert_eq!(session.orders(&events), [], "it is not asked again at once");
    assert_eq!(session.statuses(), [CallStatus::Unknown]);
    assert!(session.state.waits_for_people());
    session.tell(fact::resolved(0, fact::done("paid")));
    assert_eq!(session.last_messages(1), [result("c0", "pay", "paid")]);
}

#[test]
fn a_finding_counts_once() {
    for outcome in [fact::done("sent"), EffectOutcome::NotDone, fact::given_up("no")] {
        let mut session = Session::acting(agent(&["small"]), &["send", "look"]);
        session.tell(fact::reopened());
        session.tell(fact::resolved(0, outcome.clone()));
        let before = session.state.clone();
        for again in [fact::done("again"), EffectOutcome::NotDone, undecided()] {
            assert_eq!(session.tell(fact::resolved(0, again)), []);
        }
        assert_eq!(session.state, before, "after {outcome:?}");
    }
}

#[test]
fn a_finding_about_a_call_that_is_not_unknown_has_no_effect() {
    let mut session = Session::acting(asking(&["small"]), &["send", "pay", "wire", "look"]);
    session.tell(fact::returned(3, 1, "seen"));
    let before = session.state.clone();
    for call in [0, 1, 2, 3, 99] {
        assert_eq!(session.tell(fact::resolved(call, EffectOutcome::NotDone)), []);
        assert_eq!(session.tell(fact::resolved(call, fact::done("done"))), []);
    }
    assert_eq!(session.state, before);
}

#[test]
fn what_was_lost_again_must_be_found_out_again() {
    let mut session = lost();
    session.tell(fact::resolved(0, EffectOutcome::NotDone));
    let events = session.tell(fact::taken(3, STORE));
    assert_eq!(events, [event::taken(3, STORE), event::effect_unknown(0, 2)]);
    let events = session.tell(fact::resolved(0, EffectOutcome::NotDone));
    assert_eq!(events[1], event::tool_started(0, 3, "send"));
}

#[test]
fn a_function_that_can_find_out_is_asked_at_each_takeover() {
    let (mut session, events) = lost_payment();
    assert_eq!(events, [event::epoch_taken(), event::effect_unknown(0, 1)]);
    assert_eq!(session.orders(&events), [reconcile(0)]);
    let events = session.tell(fact::taken(3, STORE));
    assert_eq!(session.orders(&events), [reconcile(0)], "the first was lost with its process");
    session.tell(fact::resolved(0, undecided()));
    let events = session.tell(fact::taken(4, STORE));
    assert_eq!(session.orders(&events), [reconcile(0)], "the bank may answer now");
    let events = session.tell(fact::held(5, STORE));
    assert_eq!(session.orders(&events), []);
    let events = session.tell(fact::forked(None));
    assert_eq!(session.orders(&events), [reconcile(0)]);
}

#[test]
fn a_long_finding_is_cut_like_a_result() {
    let mut spec = agent(&["small"]);
    spec.limits.tool_result_bytes_max = 4;
    let long = || "0123456789".to_owned();
    let short = "01\n[... 6 bytes cut ...]\n89".to_owned();
    let outcomes = [
        (fact::done(&long()), fact::done(&short)),
        (fact::given_up(&long()), fact::given_up(&short)),
        (
            EffectOutcome::Undecided { message: long() },
            EffectOutcome::Undecided { message: short.clone() },
        ),
    ];
    for (told, recorded) in outcomes {
        let mut session = Session::acting(spec.clone(), &["send"]).reopened().0;
        let events = session.tell(fact::resolved(0, told));
        assert_eq!(events[0], event::effect_resolved(0, recorded));
    }
}

#[test]
fn the_time_limit_does_not_end_a_turn_whose_effect_is_unknown() {
    let mut session = lost();
    assert_eq!(session.tell(Fact::TurnTimedOut), []);
    assert!(session.state.is_open());
}

#[test]
fn a_cancel_before_anybody_found_out_says_so_to_the_model() {
    let mut session = lost();
    let events = session.tell(fact::cancel());
    let expected = [
        event::cancel_requested(),
        event::tool_failed(0, 1, event::outcome_unknown("send"), None),
        event::cancelled(),
    ];
    assert_eq!(events, expected);
    let told = event::outcome_unknown("send").to_text();
    assert_eq!(session.last_messages(1), [error_result("c0", "send", &told)]);
}

#[test]
fn the_result_of_a_lost_attempt_is_late_and_decides_nothing() {
    let mut session = lost();
    let events = session.tell(fact::returned(0, 1, "sent"));
    assert_eq!(events, [event::late_text(0, 1, "sent")]);
    assert_eq!(session.statuses(), [CallStatus::Unknown]);
}

#[test]
fn a_keyed_call_keeps_its_id_over_retries_takeovers_copies_and_forks() {
    let mut session = Session::acting(agent(&["small"]), &["book"]);
    session.tell(fact::raised(0, 1));
    let later = Moment { at_us: NOW.at_us + 1_000_000, seed: 0 };
    session.tell_at(Fact::TimerFired, later);
    session.tell(fact::taken(2, STORE));
    session.tell(fact::taken(3, "store-2"));
    session.tell(fact::forked(None));
    let id = EffectId::derive(&session_id(), CallIndex(0), "book", "{}");
    assert_eq!(ids(&session, 0), vec![id; 5]);
}

#[test]
fn a_keyed_call_with_edited_arguments_keeps_the_id_of_those() {
    let mut session = Session::acting(asking(&["small"]), &["order"]);
    let less = r#"{"amount":9}"#;
    session.tell(fact::decided(0, &event::approval(0, 1, STORE), fact::edited(less)));
    session.tell(fact::taken(2, STORE));
    let edit = ForkEdit::Message { index: 0, content: Vec::new() };
    session.tell(fact::forked(Some(edit)));
    let id = EffectId::derive(&session_id(), CallIndex(0), "order", less);
    assert_eq!(ids(&session, 0), vec![id; 3]);
    assert_ne!(ids(&session, 0)[0], EffectId::derive(&session_id(), CallIndex(0), "order", "{}"));
}

#[test]
fn a_call_that_a_copy_edits_after_it_was_not_done_gets_another_id() {
    // The copy asks a person, since the first store may have begun it again.
    let mut session = lost().after(fact::held(3, STORE));
    session.tell(fact::resolved(0, EffectOutcome::NotDone));
    let id = event::approval(0, 4, "store-2");
    let events = session.tell(fact::taken(4, "store-2"));
    assert_eq!(events, [event::taken(4, "store-2"), event::approval_requested(0, &id)]);
    let mut same = session.clone();
    let events = same.tell(fact::decided(0, &id, fact::edited("{}")));
    assert_eq!(events[1], event::tool_started(0, 2, "send"), "the same arguments");
    let less = r#"{"to":"ann"}"#;
    let events = session.tell(fact::decided(0, &id, fact::edited(less)));
    assert_eq!(events[1], event::tool_started_with(0, 2, "send", less));
}

#[test]
fn a_fork_gives_calls_that_begin_there_ids_of_its_own() {
    let session = Session::asked(agent(&["small"]));
    let answer = fact::answered(0, 1, fact::calls(0, &["book"]));
    let mut fork = session.clone().after(answer.clone()).cut_after("model_call_finished");
    fork.tell(fact::forked(None));
    let own = EffectId::derive(&fact::forked_id(), CallIndex(0), "book", "{}");
    let parent = ids(&session.after(answer), 0);
    assert_ne!(parent, std::slice::from_ref(&own));
    assert_eq!(ids(&fork, 0), [own]);
}
