//! Replay: every log comes out again to the byte, and one that was changed is told apart at the
//! first event that differs.

use mainspring_session::{
    AgentSpec, BlobHash, Budget, Divergence, Epoch, Event, Fact, Funding, ModelCallFinished,
    Moment, Problem, Record, Recorded, Replayed, SCHEMA_VERSION, Seq, State, replay,
};
use proptest::prelude::*;
use serde_json::value::RawValue;

use crate::play::{acts, agents, config, run};
use crate::support::{NOW, STORE, Session, agent, asking, fingerprint, limited};
use crate::{event, fact};

/// A session whose decisions are made at times and with seeds as an engine gives them.
struct Recording {
    session: Session,
    at_us: Vec<i64>,
    now_us: i64,
}

impl Recording {
    fn new(spec: AgentSpec) -> Self {
        let session = Session::empty(spec);
        let mut recording = Self { session, at_us: Vec::new(), now_us: NOW.at_us };
        recording.tell(fact::started());
        recording
    }

    fn tell(&mut self, fact: Fact) -> Vec<Event> {
        let id = match &fact {
            Fact::Started { session, .. } | Fact::Forked { session, .. } => session.clone(),
            _ => self.session.state.session.clone().unwrap(),
        };
        let seed = Moment::seed_of(&id, self.session.state.next_seq);
        let events = self.session.tell_at(fact, Moment { at_us: self.now_us, seed });
        assert_ne!(events, [], "only what counts is recorded");
        self.at_us.extend(events.iter().map(|_| self.now_us));
        self.now_us += 1000;
        events
    }

    fn after(mut self, fact: Fact) -> Self {
        self.tell(fact);
        self
    }

    /// Lets a wait pass, and the timer fire.
    fn wait(mut self) -> Self {
        self.now_us += 60_000_000;
        self.after(Fact::TimerFired)
    }

    /// The same with everything after so many events lost.
    fn cut(mut self, length: usize) -> Self {
        self.session.log.truncate(length);
        self.at_us.truncate(length);
        self.session.state = State::of(&self.session.log);
        self
    }

    fn records(&self) -> Vec<Record> {
        let record = |((event, at_us), seq): ((&Event, &i64), u64)| {
            let json = crate::world::encode(event);
            let json = RawValue::from_string(json).unwrap();
            let (seq, schema) = (Seq(seq), SCHEMA_VERSION);
            Record { seq, at_us: *at_us, epoch: Epoch(1), schema, json }
        };
        self.session.log.iter().zip(&self.at_us).zip(0..).map(record).collect()
    }
}

/// A store with one agent.
struct Store(AgentSpec);

impl Recorded for Store {
    fn spec(&mut self, wanted: &BlobHash) -> Option<AgentSpec> {
        (*wanted == fingerprint()).then(|| self.0.clone())
    }

    fn problems(&mut self, _: &AgentSpec, finished: &ModelCallFinished) -> Vec<Problem> {
        let problems = finished.problems.iter();
        problems.filter(|problem| problem.check != "tool_count").cloned().collect()
    }
}

fn replayed(recording: &Recording) -> Replayed {
    replay(&recording.records(), &mut Store(recording.session.spec.clone()))
}

fn assert_same(recording: &Recording) {
    let replayed = replayed(recording);
    assert_eq!(replayed.divergence, None);
    assert_eq!(replayed.events, recording.session.log.len() as u64);
    assert_eq!(replayed.state, recording.session.state);
}

/// Who pays for a session, with a budget of its own that counts everything.
fn funding(tokens: u64) -> Funding {
    let budget = Budget { tokens: Some(tokens), ms: Some(600_000), ..Budget::default() };
    Funding { tenant: "acme".to_owned(), budget: Some(budget), ..Funding::default() }
}

#[test]
fn a_session_with_a_budget_replays_with_its_clock_and_its_forks() {
    let recording = Recording::new(agent(&["small"]))
        .after(fact::funded(funding(9_000)))
        .after(fact::input("hi"))
        .after(fact::model_failed(0, 1, fact::server_error()))
        .wait()
        .after(fact::answered(0, 2, fact::calls(0, &["look"])))
        .after(fact::taken(2, STORE))
        .after(fact::returned(0, 2, "seen"));
    assert_same(&recording);
    let Fact::Forked { session, origin, fingerprint, store, edit, .. } = fact::forked(None) else {
        panic!("a fork")
    };
    let funding = Some(funding(7_000));
    let forked = Fact::Forked { session, origin, fingerprint, store, edit, funding };
    let recording = recording.after(forked).after(fact::answered(1, 1, fact::text("done")));
    assert_same(&recording);
    assert_eq!(recording.session.state.spending.left().unwrap().tokens, Some(7_000 - 15));
    assert_same(&recording.after(fact::taken(4, STORE)).after(fact::input("again")));
}

/// A log with everything in it that a decision can depend on.
fn rich() -> Recording {
    let store_2 = event::approval(1, 2, "store-2");
    let recording = Recording::new(asking(&["small", "large"]))
        .after(fact::input("hi"))
        .after(fact::model_failed(0, 1, fact::server_error()))
        .wait()
        .after(fact::checked(0, 2, fact::text("{"), vec![fact::problem("parse", "no", None)]))
        .after(fact::answered(1, 1, fact::calls(0, &["fetch", "pay", "wire", "move", "send"])))
        .after(fact::policy(2, false))
        .after(fact::policy(3, true))
        .after(fact::raised(0, 1))
        .wait()
        .after(fact::returned(0, 1, "late"))
        .after(fact::taken(2, "store-2"))
        .after(fact::resolved(2, fact::given_up("nobody knows")))
        .after(fact::resolved(4, mainspring_session::EffectOutcome::NotDone))
        .after(fact::decided(1, &store_2, fact::edited(r#"{"amount":90}"#)))
        .after(fact::held(3, "store-2"));
    let move_2 = event::approval(3, 2, "store-2");
    recording
        .after(fact::decided(3, &move_2, fact::denied("no")))
        .after(fact::taken(4, "store-2"))
        .after(fact::forked(None))
}

proptest! {
    #![proptest_config(config(1000, 4))]

    #[test]
    fn every_log_of_the_world_comes_out_again(spec in agents(), acts in acts()) {
        let world = run(spec, &acts);
        let replayed = replay(&world.records(), &mut &world);
        prop_assert_eq!(&replayed.divergence, &None);
        prop_assert_eq!(replayed.events, world.log.len() as u64);
        prop_assert_eq!(replayed.state, world.state);
    }

    #[test]
    fn every_log_that_was_brought_to_its_end_comes_out_again(spec in agents(), acts in acts()) {
        let mut world = run(spec, &acts);
        world.drain();
        let replayed = replay(&world.records(), &mut &world);
        prop_assert_eq!(&replayed.divergence, &None);
        prop_assert_eq!(replayed.state, world.state);
    }

    #[test]
    fn a_log_that_lost_an_event_never_comes_out_past_it_as_it_was(
        spec in agents(),
        acts in acts(),
        pick in any::<usize>(),
    ) {
        let world = run(spec, &acts);
        let mut records = world.records();
        let position = pick % records.len();
        records.remove(position);
        let replayed = replay(&records, &mut &world);
        let count = usize::try_from(replayed.events).unwrap();
        let read = |record: &Record| record.event().unwrap();
        let same: Vec<_> = records[..count].iter().map(read).collect();
        prop_assert_eq!(replayed.state, State::of(&same));
        match replayed.divergence {
            // What others told it may be lost without a trace; the rest is missed.
            None => prop_assert_eq!(count, records.len()),
            Some(found) => {
                let past = records.last().map_or(0, |record| record.seq.0 + 1);
                let at = records.get(count).map_or(past, |record| record.seq.0);
                prop_assert_eq!(found.seq, Seq(at));
            }
        }
    }
}

#[test]
fn a_rich_log_comes_out_again() {
    assert_same(&rich());
}

#[test]
fn a_log_that_was_cut_in_the_middle_of_a_decision_and_forked_comes_out_again() {
    let length = rich().session.log.len();
    for cut in 1..=length {
        let fork = rich().cut(cut);
        assert_same(&fork.after(fact::forked(None)));
    }
}

#[test]
fn results_that_were_cut_and_limits_come_out_again() {
    let mut spec = asking(&["small"]);
    spec.limits.tool_result_bytes_max = 4;
    spec.limits.steps_max = 2;
    spec.limits.tool_calls_per_step_max = 2;
    let recording = Recording::new(spec)
        .after(fact::input("hi"))
        .after(fact::answered(0, 1, fact::calls(0, &["look", "pay", "send"])))
        .after(fact::returned(0, 1, "0123456789"))
        .after(fact::decided(1, &event::approval(1, 1, STORE), fact::denied("much too dear")))
        .after(fact::returned(0, 1, "much too late"))
        .after(fact::answered(1, 1, fact::calls(3, &["fetch"])))
        .after(fact::raised(3, 1))
        .wait()
        .after(fact::raised(3, 2))
        .wait()
        .after(fact::raised(3, 3));
    let last = recording.session.log.last();
    assert!(matches!(last, Some(Event::SessionFailed { .. })), "{last:?}");
    assert_same(&recording);
}

#[test]
fn a_cancel_and_the_end_of_time_come_out_again() {
    let running = || {
        Recording::new(agent(&["small"])).after(fact::input("hi")).after(fact::answered(
            0,
            1,
            fact::calls(0, &["look", "send"]),
        ))
    };
    assert_same(&running().after(fact::cancel()).after(fact::input("again")));
    assert_same(&running().after(Fact::TurnTimedOut).after(fact::returned(0, 1, "late")));
}

#[test]
fn two_waits_that_end_at_once_come_out_again() {
    let recording = Recording::new(agent(&["small"]))
        .after(fact::input("hi"))
        .after(fact::answered(0, 1, fact::calls(0, &["fetch", "book", "fetch"])))
        .after(fact::raised(0, 1))
        .after(fact::raised(2, 1))
        .after(fact::raised(1, 1))
        .wait();
    assert_same(&recording);
}

#[test]
fn a_timer_whose_record_is_a_little_early_comes_out_again() {
    let mut recording = Recording::new(agent(&["small"]))
        .after(fact::input("hi"))
        .after(fact::model_failed(0, 1, fact::server_error()))
        .wait()
        .after(fact::answered(0, 2, fact::calls(0, &["fetch", "book"])))
        .after(fact::raised(0, 1))
        .after(fact::raised(1, 1))
        .wait();
    let started = |event: &Event| {
        matches!(event, Event::ToolCallStarted(call) if call.attempt == 2)
            || matches!(event, Event::ModelCallStarted(call) if call.attempt == 2)
    };
    for (event, at_us) in recording.session.log.iter().zip(&mut recording.at_us) {
        if started(event) {
            *at_us -= 59_999_000;
        }
    }
    assert_same(&recording);
}

#[test]
fn an_event_of_a_newer_version_is_passed_over() {
    let mut recording = Recording::new(agent(&["small"])).after(fact::input("hi"));
    recording.session.log.push(Event::Unknown);
    recording.session.state.fold(&Event::Unknown);
    recording.at_us.push(recording.now_us);
    let mut records = recording.records();
    let last = records.last_mut().unwrap();
    last.json = RawValue::from_string(r#"{"kind":"plan_revised"}"#.to_owned()).unwrap();
    let replayed = replay(&records, &mut Store(agent(&["small"])));
    assert_eq!(replayed.divergence, None);
    assert_eq!(replayed.events, 5);
    assert_eq!(replayed.state, recording.session.state);
}

/// Replays a log with one record changed, and expects the difference there.
fn assert_told_apart(recording: &Recording, position: usize, from: &str, to: &str) -> Divergence {
    let mut records = recording.records();
    let stored = records[position].json.get().to_owned();
    assert!(stored.contains(from), "{from} is not in {stored}");
    let changed = stored.replacen(from, to, 1);
    records[position].json = RawValue::from_string(changed.clone()).unwrap();
    let replayed = replay(&records, &mut Store(recording.session.spec.clone()));
    let divergence = replayed.divergence.expect("the change is found");
    assert_eq!(divergence.seq, Seq(position as u64));
    assert_eq!(divergence.recorded, Some(changed));
    assert_eq!(divergence.replayed, Some(stored));
    assert_eq!(divergence.why, "another event comes out");
    assert_eq!(replayed.events, position as u64);
    assert_eq!(replayed.state, State::of(&recording.session.log[..position]));
    divergence
}

#[test]
fn a_changed_event_is_reported_where_it_stands_with_both_texts() {
    let recording = Recording::new(asking(&["small"]))
        .after(fact::input("hi"))
        .after(fact::answered(0, 1, fact::calls(0, &["look", "pay"])));
    let kinds: Vec<_> = recording.session.log.iter().map(Event::kind).collect();
    let at = |kind| kinds.iter().position(|it| *it == kind).unwrap();
    assert_told_apart(&recording, at("route_decided"), "the only model", "a whim");
    assert_told_apart(&recording, at("model_call_started"), "[[0,1]]", "[[0,0]]");
    let id = event::approval(1, 1, STORE);
    assert_told_apart(&recording, at("approval_requested"), id.as_str(), "another id");
    assert_told_apart(&recording, at("tool_call_started"), r#""look""#, r#""send""#);
}

#[test]
fn a_changed_wait_is_reported() {
    let recording = Recording::new(agent(&["small"]))
        .after(fact::input("hi"))
        .after(fact::model_failed(0, 1, fact::server_error()));
    let due = match recording.session.log.last() {
        Some(Event::ModelCallFailed(failed)) => failed.retry_at_us.unwrap(),
        other => panic!("a failure, not {other:?}"),
    };
    let position = recording.session.log.len() - 1;
    let (from, to) = (due.to_string(), (due + 1).to_string());
    assert_told_apart(&recording, position, &from, &to);
}

#[test]
fn a_log_that_ends_inside_a_decision_says_what_is_missing() {
    let recording = Recording::new(agent(&["small"])).after(fact::input("hi"));
    let mut records = recording.records();
    let missing = records.pop().unwrap();
    let replayed = replay(&records, &mut Store(agent(&["small"])));
    let expected = Divergence {
        seq: Seq(3),
        recorded: None,
        replayed: Some(missing.json.get().to_owned()),
        why: "the recorded log ends here".to_owned(),
    };
    assert_eq!(replayed.divergence, Some(expected));
    assert_eq!(replayed.events, 3);
}

/// What a replay says of a log whose event at this position is another one.
fn told_of(recording: &Recording, position: usize, other: &Event) -> Divergence {
    let mut records = recording.records();
    records.truncate(position + 1);
    records[position].json = RawValue::from_string(crate::world::encode(other)).unwrap();
    let replayed = replay(&records, &mut Store(recording.session.spec.clone()));
    assert_eq!(replayed.events, position as u64);
    assert_eq!(replayed.state, State::of(&recording.session.log[..position]));
    let divergence = replayed.divergence.expect("the change is found");
    assert_eq!(divergence.seq, Seq(position as u64));
    assert_eq!(divergence.recorded, Some(crate::world::encode(other)));
    divergence
}

#[test]
fn an_event_that_nothing_leads_to_is_reported() {
    let recording = Recording::new(agent(&["small"]))
        .after(fact::input("hi"))
        .after(fact::answered(0, 1, fact::text("yes")));
    let fresh = Recording::new(agent(&["small"]));
    let divergence = told_of(&fresh, 0, &event::input("hi"));
    assert_eq!(divergence.why, "the log does not begin with the start of a session");
    let divergence = told_of(&recording, 1, &event::finished(0));
    assert_eq!(divergence.why, "nothing that was recorded leads to this event");
    let divergence = told_of(&recording, 4, &event::input("me too"));
    assert_eq!(divergence.why, "a session that is Calling takes no Input");
    let divergence = told_of(&recording, 4, &event::answered(0, 7, fact::text("yes")));
    assert_eq!(divergence.why, "nothing follows from what was recorded");
}

#[test]
fn a_record_that_cannot_be_read_is_reported() {
    let recording = Recording::new(agent(&["small"])).after(fact::input("hi"));
    let mut records = recording.records();
    let broken = r#"{"kind":"input_received","content":7}"#;
    records[1].json = RawValue::from_string(broken.to_owned()).unwrap();
    let replayed = replay(&records, &mut Store(agent(&["small"])));
    let divergence = replayed.divergence.unwrap();
    assert_eq!((divergence.seq, divergence.recorded.as_deref()), (Seq(1), Some(broken)));
    assert!(divergence.why.starts_with("invalid type"), "{}", divergence.why);
}

#[test]
fn a_changed_agent_is_reported_where_it_would_have_done_otherwise() {
    let recording = Recording::new(agent(&["small", "large"]))
        .after(fact::input("hi"))
        .after(fact::answered(0, 1, fact::calls(0, &["send"])))
        .after(fact::taken(2, STORE));
    let last = recording.session.log.len() - 1;
    let told = |spec| replay(&recording.records(), &mut Store(spec)).divergence.unwrap();
    let divergence = told(agent(&["tiny", "large"]));
    assert_eq!(divergence.seq, Seq(2));
    assert!(divergence.replayed.unwrap().contains(r#""model":"tiny""#));
    let mut careful = agent(&["small", "large"]);
    careful.tools[3].approve = mainspring_session::Approve::Always;
    let divergence = told(careful);
    assert_eq!(divergence.seq, Seq(5));
    assert!(divergence.replayed.unwrap().contains("approval_requested"));
    let mut harmless = agent(&["small", "large"]);
    harmless.tools[3].effect = mainspring_session::Effect::Keyed;
    let divergence = told(harmless);
    assert_eq!(divergence.seq, Seq(last as u64));
    assert!(divergence.recorded.unwrap().contains("effect_unknown"));
    assert!(divergence.replayed.unwrap().contains("tool_call_started"));
}

#[test]
fn an_agent_that_is_not_in_the_store_is_reported() {
    let recording = Recording::new(agent(&["small"]));
    let mut log = recording.session.log.clone();
    let Event::SessionStarted(started) = &mut log[0] else { panic!("a start") };
    started.fingerprint = BlobHash::of(b"another agent");
    let divergence = told_of(&recording, 0, &log[0]);
    assert_eq!(divergence.why, "the agent of this event is not in the store");
}

#[test]
fn an_empty_log_is_the_same_as_itself() {
    let expected = Replayed { events: 0, state: State::default(), divergence: None };
    assert_eq!(replay(&[], &mut Store(limited(mainspring_session::Limits::default()))), expected);
}
