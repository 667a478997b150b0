//! One row or more for every pair of phase and fact that may meet, and a proof that no pair is
//! left out; every other pair is refused.

use std::collections::BTreeSet;

use mainspring_session::{
    ActiveModelCall, AgentSpec, Check, EffectOutcome, ErrorCode, Event, Fact, FactKind, Failure,
    Funding, Moment, PendingAnswer, Phase, PhaseKind, Refused, RejectAction, TRANSITIONS, decide,
};

use crate::support::{NOW, STORE, Session, agent, asking, judged, kinds, verifying};
use crate::{event, fact};

/// A fact that meets a session, and all that must come of it.
struct Row {
    name: &'static str,
    given: Session,
    now: Moment,
    fact: Fact,
    events: Vec<Event>,
    phase: Phase,
}

/// When every wait is over.
const LATER: Moment = Moment { at_us: NOW.at_us + 1_000_000, seed: 0 };

/// Checks one row; returns the pair of phase and fact that it took.
fn check(row: Row) -> (PhaseKind, FactKind) {
    let mut session = row.given;
    let pair = (session.state.phase.kind(), row.fact.kind());
    let events = session.tell_at(row.fact, row.now);
    assert_eq!(events, row.events, "the events of: {}", row.name);
    assert_eq!(session.state.phase, row.phase, "the phase after: {}", row.name);
    pair
}

fn row(
    name: &'static str,
    given: Session,
    fact: Fact,
    events: Vec<Event>,
    phase: impl Into<After>,
) -> Row {
    let After(phase) = phase.into();
    Row { name, given, now: NOW, fact, events, phase }
}

/// The phase a row ends in. Tool calls come from a session that got there another way.
struct After(Phase);

impl From<Phase> for After {
    fn from(phase: Phase) -> Self {
        Self(phase)
    }
}

impl From<&Session> for After {
    fn from(same: &Session) -> Self {
        Self(same.state.phase.clone())
    }
}

fn one() -> AgentSpec {
    agent(&["small"])
}

fn two() -> AgentSpec {
    agent(&["small", "large"])
}

fn call(step: u32, attempt: u32, tier: u32) -> ActiveModelCall {
    ActiveModelCall { step, attempt, tier }
}

fn calling(step: u32, attempt: u32, tier: u32) -> Phase {
    Phase::Calling(call(step, attempt, tier))
}

fn backing_off() -> Session {
    Session::asked(one()).after(fact::model_failed(0, 1, fact::server_error()))
}

fn judging() -> Session {
    Session::asked(verifying(&["small"])).after(fact::answered(0, 1, fact::text("yes")))
}

/// A log cut between an answer with a problem and its rejection.
fn judging_cut() -> Session {
    let problem = fact::problem("finish_reason", "it was cut off", None);
    let cut_off = fact::checked(0, 1, fact::text(""), vec![problem]);
    Session::asked(two()).after(cut_off).cut_after("model_call_finished")
}

fn stepping() -> Session {
    Session::asked(one()).cut_after("input_received")
}

fn concluding() -> Session {
    let answer = fact::answered(0, 1, fact::text("yes"));
    Session::asked(one()).after(answer).cut_after("model_call_finished")
}

fn failing() -> Session {
    let failed = fact::model_failed(0, 1, fact::auth_error());
    Session::asked(one()).after(failed).cut_after("model_call_failed")
}

/// A session that has said more than its model can read, and has the oldest of it summarised.
fn summarising() -> Session {
    let mut spec = one();
    spec.models[0].context_tokens = Some(2_000);
    let said = fact::text(&"a fact. ".repeat(700));
    Session::asked(spec).after(fact::answered(0, 1, said)).after(fact::input("and?"))
}

/// What is left out when a summary has ended, and the call that then follows.
fn compacted(given: &Session, ended: Fact, first: Event) -> Vec<Event> {
    let mut after = given.clone();
    let events = after.tell(ended);
    assert_eq!(kinds(&events[1..]), ["context_compacted", "model_call_started"]);
    vec![first, events[1].clone(), events[2].clone()]
}

fn summarising_rows() -> Vec<Row> {
    let given = summarising();
    assert_eq!(given.state.phase.kind(), PhaseKind::Summarising);
    let mut rows = late_rows("a late result during a summary", &given);
    rows.extend(ending_rows("the end of a turn during a summary", &given));
    let (had, none) = (fact::summarised(1, "much"), fact::no_summary(1));
    let with = compacted(&given, had.clone(), event::summarised(1, "much"));
    let without = compacted(&given, none.clone(), event::no_summary(1, fact::server_error()));
    let lost =
        Failure::new(ErrorCode::PROCESS_LOST, "the process ended while a summary was being made");
    let mut retaken = given.clone();
    let again = retaken.tell(fact::reopened());
    assert_eq!(again[1], event::no_summary(1, lost));
    let mut forked = given.clone();
    let anew = forked.tell(fact::forked(None));
    assert_eq!(kinds(&anew), ["session_forked", "route_decided", "summary_started"]);
    rows.extend([
        row("a summary", given.clone(), had, with, calling(1, 1, 0)),
        row("no summary", given.clone(), none, without, calling(1, 1, 0)),
        row("a summary of another step", given.clone(), fact::summarised(7, "x"), vec![], &given),
        row(
            "a new owner during a summary",
            given.clone(),
            fact::reopened(),
            again,
            calling(1, 1, 0),
        ),
        row("a fork during a summary", given, fact::forked(None), anew, &forked),
    ]);
    rows
}

fn late_rows(name: &'static str, given: &Session) -> Vec<Row> {
    let late = |fact, event| row(name, given.clone(), fact, vec![event], given);
    vec![
        late(fact::returned(7, 1, "late"), event::late_text(7, 1, "late")),
        late(fact::raised(7, 1), event::late_error(7, 1, fact::boom())),
    ]
}

/// Cancel and time limit in a phase without tool calls.
fn ending_rows(name: &'static str, given: &Session) -> Vec<Row> {
    vec![
        row(
            name,
            given.clone(),
            fact::cancel(),
            vec![event::cancel_requested(), event::cancelled()],
            Phase::Ready,
        ),
        row(
            name,
            given.clone(),
            Fact::TurnTimedOut,
            vec![event::limit_reached("turn_ms_max", 3_600_000, 3_600_000), event::out_of_time()],
            Phase::Ready,
        ),
    ]
}

fn idle_rows() -> Vec<Row> {
    let ready = Session::started(one());
    let mut rows = late_rows("a result after the turn is kept and changes nothing", &ready);
    rows.extend([
        row(
            "a session starts",
            Session::empty(one()),
            fact::started(),
            vec![event::session_started()],
            Phase::Ready,
        ),
        row(
            "somebody pays for a session",
            ready.clone(),
            fact::funded(Funding { tenant: "acme".to_owned(), ..Funding::default() }),
            vec![Event::BudgetSet(Funding { tenant: "acme".to_owned(), ..Funding::default() })],
            Phase::Ready,
        ),
        row(
            "an input begins a turn with the only model",
            ready.clone(),
            fact::input("hi"),
            vec![
                event::input("hi"),
                event::route(0, 0, "small", event::ONLY),
                event::calling(0, 1, 0, 1),
            ],
            calling(0, 1, 0),
        ),
        row(
            "an input begins a turn with the first model of the route",
            Session::started(two()),
            fact::input("hi"),
            vec![
                event::input("hi"),
                event::route(0, 0, "small", event::FIRST),
                event::calling(0, 1, 0, 1),
            ],
            calling(0, 1, 0),
        ),
        row(
            "a new owner of an idle session has nothing to do",
            ready.clone(),
            fact::reopened(),
            vec![event::epoch_taken()],
            Phase::Ready,
        ),
    ]);
    rows
}

fn cut_rows() -> Vec<Row> {
    let cancel = |given: Session| {
        let events = vec![event::cancel_requested(), event::cancelled()];
        row("a cut log", given, fact::cancel(), events, Phase::Ready)
    };
    let reopen = |given: Session, next: Vec<Event>, phase: Phase| {
        let mut events = vec![event::epoch_taken()];
        events.extend(next);
        row("a cut log", given, fact::reopened(), events, phase)
    };
    let first_step = vec![event::route(0, 0, "small", event::ONLY), event::calling(0, 1, 0, 1)];
    let problem = fact::problem("finish_reason", "it was cut off", None);
    let why = "the answer was rejected: it was cut off";
    let next_tier = vec![
        event::rejected(0, vec![problem], RejectAction::Escalate),
        event::route(1, 1, "large", why),
        event::calling(1, 1, 1, 1),
    ];
    let failed = vec![event::failed(fact::auth_error())];
    vec![
        cancel(stepping()),
        cancel(concluding()),
        cancel(failing()),
        reopen(stepping(), first_step, calling(0, 1, 0)),
        reopen(concluding(), vec![event::finished(0)], Phase::Ready),
        reopen(failing(), failed, Phase::Ready),
        reopen(judging_cut(), next_tier, calling(1, 1, 1)),
    ]
}

fn answer_rows() -> Vec<Row> {
    let problem = || vec![fact::problem("parse", "not JSON", None)];
    let both = fact::calls(0, &["look", "send"]);
    vec![
        row(
            "a plain answer ends the turn",
            Session::asked(one()),
            fact::answered(0, 1, fact::text("yes")),
            vec![event::answered(0, 1, fact::text("yes")), event::finished(0)],
            Phase::Ready,
        ),
        row(
            "tool calls start together",
            Session::asked(one()),
            fact::answered(0, 1, both.clone()),
            vec![
                event::answered(0, 1, both.clone()),
                event::tool_started(0, 1, "look"),
                event::tool_started(1, 1, "send"),
            ],
            &Session::acting(one(), &["look", "send"]),
        ),
        row(
            "the only model mends its answer",
            Session::asked(one()),
            fact::checked(0, 1, fact::text("{"), problem()),
            vec![
                event::checked(0, 1, fact::text("{"), problem()),
                event::rejected(0, problem(), RejectAction::Repair),
                event::calling(1, 1, 0, 3),
            ],
            calling(1, 1, 0),
        ),
        row(
            "an answer waits for the user's function",
            Session::asked(verifying(&["small"])),
            fact::answered(0, 1, fact::text("yes")),
            vec![event::unverified(0, 1, fact::text("yes"))],
            Phase::Judging(PendingAnswer {
                answer: fact::text("yes"),
                verify: true,
                ..PendingAnswer::default()
            }),
        ),
        row(
            "an answer to another attempt does not count",
            Session::asked(one()),
            fact::answered(0, 2, fact::text("yes")),
            Vec::new(),
            calling(0, 1, 0),
        ),
        row(
            "an answer to another step does not count",
            Session::asked(one()),
            fact::answered(1, 1, fact::text("yes")),
            Vec::new(),
            calling(0, 1, 0),
        ),
    ]
}

fn calling_rows() -> Vec<Row> {
    let asked = Session::asked(one());
    let mut rows = answer_rows();
    rows.extend(late_rows("a late result during a model call", &asked));
    rows.extend(ending_rows("the end of a turn in a model call", &asked));
    rows.extend([
        row(
            "a failure that may pass is tried again",
            asked.clone(),
            fact::model_failed(0, 1, fact::server_error()),
            vec![event::model_failed(0, 1, fact::server_error(), Some(1_250_000))],
            Phase::Backoff(call(0, 1, 0), 1_250_000),
        ),
        row(
            "a lasting failure of the only model ends the turn",
            asked.clone(),
            fact::model_failed(0, 1, fact::auth_error()),
            vec![
                event::model_failed(0, 1, fact::auth_error(), None),
                event::failed(fact::auth_error()),
            ],
            Phase::Ready,
        ),
        row(
            "a lasting failure goes to the next model",
            Session::asked(two()),
            fact::model_failed(0, 1, fact::auth_error()),
            vec![
                event::model_failed(0, 1, fact::auth_error(), None),
                event::route(1, 1, "large", "model \"small\" failed (model_auth): status 401"),
                event::calling(1, 1, 1, 1),
            ],
            calling(1, 1, 1),
        ),
        row(
            "a failure of another attempt does not count",
            asked.clone(),
            fact::model_failed(0, 2, fact::auth_error()),
            Vec::new(),
            calling(0, 1, 0),
        ),
        row(
            "a lost model call is made again",
            asked,
            fact::reopened(),
            vec![event::epoch_taken(), event::process_lost(0, 1), event::calling(0, 2, 0, 1)],
            calling(0, 2, 0),
        ),
    ]);
    rows
}

fn backoff_rows() -> Vec<Row> {
    let early = backing_off();
    let mut rows = late_rows("a late result while waiting", &early);
    rows.extend(ending_rows("the end of a turn while waiting", &early));
    rows.extend([
        Row {
            now: LATER,
            ..row(
                "the next attempt begins when it is due",
                early.clone(),
                Fact::TimerFired,
                vec![event::calling(0, 2, 0, 1)],
                calling(0, 2, 0),
            )
        },
        row(
            "a timer that is early changes nothing",
            early.clone(),
            Fact::TimerFired,
            Vec::new(),
            &early,
        ),
        row(
            "a new owner waits on",
            early.clone(),
            fact::reopened(),
            vec![event::epoch_taken()],
            &early,
        ),
    ]);
    rows
}

fn judging_rows() -> Vec<Row> {
    let given = judging();
    let mut rows = late_rows("a late result during a verdict", &given);
    rows.extend(ending_rows("the end of a turn during a verdict", &given));
    let short = || vec![fact::problem("verify", "too short", None)];
    rows.extend([
        row(
            "an accepted answer ends the turn",
            given.clone(),
            fact::accepted(),
            vec![event::verified(0), event::finished(0)],
            Phase::Ready,
        ),
        row(
            "a rejected answer is mended",
            given.clone(),
            fact::rejected("too short"),
            vec![event::rejected(0, short(), RejectAction::Repair), event::calling(1, 1, 0, 3)],
            calling(1, 1, 0),
        ),
        row(
            "a new owner asks for the verdict again",
            given.clone(),
            fact::reopened(),
            vec![event::epoch_taken()],
            &given,
        ),
    ]);
    rows
}

/// Checks by models: the same model again, then the judge.
fn checking_rows() -> Vec<Row> {
    let yes = || fact::answered(0, 1, fact::text("yes"));
    let agreeing = Session::asked(judged(&["small", "large"])).after(yes());
    let judging = agreeing.clone().after(fact::found(0, Check::Agreement, 1.0));
    let wrong = || vec![fact::problem("judge", "it is wrong", None)];
    vec![
        row(
            "an answer that others agree with goes to the judge",
            agreeing.clone(),
            fact::found(0, Check::Agreement, 1.0),
            vec![
                event::found(0, Check::Agreement, Some(1.0)),
                event::check_started(0, Check::Judge, "judge", 1),
            ],
            &judging,
        ),
        row(
            "an answer that the judge accepts ends the turn",
            judging.clone(),
            fact::found(0, Check::Judge, 1.0),
            vec![event::found(0, Check::Judge, Some(1.0)), event::finished(0)],
            Phase::Ready,
        ),
        row(
            "an answer that the judge refuses goes to the next model",
            judging.clone(),
            fact::found(0, Check::Judge, 0.0),
            vec![
                event::found(0, Check::Judge, Some(0.0)),
                event::rejected(0, wrong(), RejectAction::Escalate),
                event::route(1, 1, "large", "the answer was rejected: it is wrong"),
                event::calling(1, 1, 1, 1),
            ],
            calling(1, 1, 1),
        ),
        row(
            "a check that cannot find out counts for nothing",
            judging,
            fact::not_found(0, Check::Judge),
            vec![event::not_found(0, Check::Judge), event::finished(0)],
            Phase::Ready,
        ),
        row(
            "a finding that nobody waits for does not count",
            agreeing.clone(),
            fact::found(0, Check::Judge, 0.0),
            Vec::new(),
            &agreeing,
        ),
        row(
            "a new owner makes the check again",
            agreeing.clone(),
            fact::reopened(),
            vec![event::epoch_taken()],
            &agreeing,
        ),
    ]
}

fn acting_rows() -> Vec<Row> {
    let both = Session::acting(one(), &["look", "fetch"]);
    let last = both.clone().after(fact::returned(0, 1, "a"));
    vec![
        row(
            "the first result waits for the second",
            both.clone(),
            fact::returned(0, 1, "a"),
            vec![event::tool_finished(0, "a")],
            &last,
        ),
        row(
            "the last result begins the next step",
            last.clone(),
            fact::returned(1, 1, "b"),
            vec![event::tool_finished(1, "b"), event::calling(1, 1, 0, 4)],
            calling(1, 1, 0),
        ),
        row(
            "a result that was already told is late",
            last.clone(),
            fact::returned(0, 1, "again"),
            vec![event::late_text(0, 1, "again")],
            &last,
        ),
        row(
            "a result of another attempt is late",
            last.clone(),
            fact::raised(1, 2),
            vec![event::late_error(1, 2, fact::boom())],
            &last,
        ),
    ]
}

fn tool_retry_rows() -> Vec<Row> {
    let waiting = Session::acting(one(), &["fetch"]).after(fact::raised(0, 1));
    let mut again = waiting.clone();
    again.tell_at(Fact::TimerFired, LATER);
    vec![
        row(
            "a tool without attempts left fails for good",
            Session::acting(one(), &["look"]),
            fact::raised(0, 1),
            vec![event::tool_failed(0, 1, fact::boom(), None), event::calling(1, 1, 0, 3)],
            calling(1, 1, 0),
        ),
        row(
            "a tool with attempts left is tried again",
            Session::acting(one(), &["fetch"]),
            fact::raised(0, 1),
            vec![event::tool_failed(0, 1, fact::boom(), Some(1_050_000))],
            &waiting,
        ),
        Row {
            now: LATER,
            ..row(
                "the next attempt at a tool begins when it is due",
                waiting.clone(),
                Fact::TimerFired,
                vec![event::tool_started(0, 2, "fetch")],
                &again,
            )
        },
        row(
            "a timer that is early starts no tool",
            waiting.clone(),
            Fact::TimerFired,
            Vec::new(),
            &waiting,
        ),
    ]
}

fn acting_ending_rows() -> Vec<Row> {
    let last = Session::acting(one(), &["look", "fetch"]).after(fact::returned(0, 1, "a"));
    let lost = Session::acting(one(), &["look", "send"]);
    let mut retaken = lost.clone();
    retaken.tell(fact::reopened());
    vec![
        row(
            "a cancel stops the calls that run",
            last.clone(),
            fact::cancel(),
            vec![
                event::cancel_requested(),
                event::tool_stopped(1, 1, "fetch", "the session was cancelled"),
                event::cancelled(),
            ],
            Phase::Ready,
        ),
        row(
            "the end of time stops the calls that run",
            last,
            Fact::TurnTimedOut,
            vec![
                event::limit_reached("turn_ms_max", 3_600_000, 3_600_000),
                event::tool_stopped(1, 1, "fetch", "the turn ran out of time"),
                event::out_of_time(),
            ],
            Phase::Ready,
        ),
        row(
            "a new owner repeats what may be repeated and nothing else",
            lost,
            fact::reopened(),
            vec![
                event::epoch_taken(),
                event::tool_started(0, 2, "look"),
                event::effect_unknown(1, 1),
            ],
            &retaken,
        ),
    ]
}

/// What people and the user's functions say while tool calls are under way.
fn people_rows() -> Vec<Row> {
    let waiting = Session::acting(asking(&["small"]), &["pay", "wire"]);
    let here = event::approval(0, 1, STORE);
    let paying = waiting.clone().after(fact::decided(0, &here, fact::granted()));
    let wiring = waiting.clone().after(fact::policy(1, false));
    let wire_asked = waiting.clone().after(fact::policy(1, true));
    let refused = waiting.clone().after(fact::decided(0, &here, fact::denied("no")));
    let lost = Session::acting(one(), &["send"]).reopened().0;
    let again = lost.clone().after(fact::resolved(0, EffectOutcome::NotDone));
    let resolved = |outcome: EffectOutcome| {
        let events = vec![event::effect_resolved(0, outcome.clone()), event::calling(1, 1, 0, 3)];
        row("found out", lost.clone(), fact::resolved(0, outcome), events, calling(1, 1, 0))
    };
    let granted = event::approval_decided(0, &here, fact::granted());
    let denied = event::approval_decided(0, &here, fact::denied("no"));
    let not_done = event::effect_resolved(0, EffectOutcome::NotDone);
    vec![
        row(
            "a policy that asks nobody starts the call",
            waiting.clone(),
            fact::policy(1, false),
            vec![event::tool_started(1, 1, "wire")],
            &wiring,
        ),
        row(
            "a policy that asks a person makes a request",
            waiting.clone(),
            fact::policy(1, true),
            vec![event::approval_requested(1, &event::approval(1, 1, STORE))],
            &wire_asked,
        ),
        row(
            "a call that a person grants starts",
            waiting.clone(),
            fact::decided(0, &here, fact::granted()),
            vec![granted, event::tool_started(0, 1, "pay")],
            &paying,
        ),
        row(
            "a call that a person refuses does not start",
            waiting.clone(),
            fact::decided(0, &here, fact::denied("no")),
            vec![denied],
            &refused,
        ),
        row(
            "what was not done is begun again",
            lost.clone(),
            fact::resolved(0, EffectOutcome::NotDone),
            vec![not_done, event::tool_started(0, 2, "send")],
            &again,
        ),
        resolved(fact::done("sent")),
        resolved(fact::given_up("nobody knows")),
    ]
}

/// A fork in every phase of a session that has begun.
fn fork_rows() -> Vec<Row> {
    let fork = |name, given: Session, next: Vec<Event>, phase: Phase| {
        let mut events = vec![event::forked(2, None)];
        events.extend(next);
        row(name, given, fact::forked(None), events, phase)
    };
    let asked_anew =
        |step| vec![event::route(step, 0, "small", event::ONLY), event::calling(step, 1, 0, 1)];
    let judged = judging();
    let waiting = judged.state.phase.clone();
    let running = Session::acting(one(), &["look", "send"]);
    let mut retaken = running.clone();
    retaken.tell(fact::reopened());
    let repeated = vec![event::tool_started(0, 2, "look"), event::effect_unknown(1, 1)];
    vec![
        fork("a fork between turns", Session::started(one()), Vec::new(), Phase::Ready),
        fork("a fork before a step", stepping(), asked_anew(0), calling(0, 1, 0)),
        fork("a fork in a model call", Session::asked(one()), asked_anew(0), calling(0, 1, 0)),
        fork("a fork between attempts", backing_off(), asked_anew(0), calling(0, 1, 0)),
        fork("a fork that waits for a verdict", judged, Vec::new(), waiting),
        fork("a fork with tools under way", running, repeated, retaken.state.phase),
        fork("a fork before the end", concluding(), vec![event::finished(0)], Phase::Ready),
        fork("a fork after a failure", failing(), asked_anew(1), calling(1, 1, 0)),
    ]
}

fn all_rows() -> Vec<Row> {
    let tables = [
        idle_rows(),
        cut_rows(),
        calling_rows(),
        backoff_rows(),
        judging_rows(),
        checking_rows(),
        acting_rows(),
        tool_retry_rows(),
        acting_ending_rows(),
        people_rows(),
        fork_rows(),
        summarising_rows(),
    ];
    tables.into_iter().flatten().collect()
}

/// Every phase; a new one does not compile until it is listed.
fn phases() -> Vec<PhaseKind> {
    use PhaseKind::{
        Acting, Backoff, Calling, Concluding, Empty, Failing, Judging, Ready, Stepping, Summarising,
    };
    let listed = |kind| match kind {
        Empty | Ready | Stepping | Summarising | Calling | Backoff | Judging | Acting
        | Concluding | Failing => 10,
    };
    let mut kinds = vec![Empty, Ready, Stepping, Summarising, Calling, Backoff, Judging, Acting];
    kinds.extend([Concluding, Failing]);
    assert_eq!(kinds.len(), listed(Empty));
    kinds
}

/// A session in each phase.
fn session_in(phase: PhaseKind) -> Session {
    match phase {
        PhaseKind::Empty => Session::empty(one()),
        PhaseKind::Ready => Session::started(one()),
        PhaseKind::Stepping => stepping(),
        PhaseKind::Summarising => summarising(),
        PhaseKind::Calling => Session::asked(one()),
        PhaseKind::Backoff => backing_off(),
        PhaseKind::Judging => judging(),
        PhaseKind::Acting => Session::acting(one(), &["look", "fetch"]),
        PhaseKind::Concluding => concluding(),
        PhaseKind::Failing => failing(),
    }
}

#[test]
fn every_fact_leads_to_its_events_and_every_transition_is_taken() {
    let taken: BTreeSet<_> = all_rows().into_iter().map(check).collect();
    let listed: BTreeSet<_> = TRANSITIONS.iter().copied().collect();
    assert_eq!(listed.len(), TRANSITIONS.len(), "a transition stands twice");
    let missing: Vec<_> = listed.difference(&taken).collect();
    assert!(missing.is_empty(), "no test takes these transitions: {missing:?}");
    let unlisted: Vec<_> = taken.difference(&listed).collect();
    assert!(unlisted.is_empty(), "taken but not listed: {unlisted:?}");
}

#[test]
fn every_other_pair_is_refused_and_changes_nothing() {
    let mut refused_count = 0;
    for phase in phases() {
        for fact in fact::one_of_each() {
            let kind = fact.kind();
            if TRANSITIONS.contains(&(phase, kind)) {
                continue;
            }
            let Session { spec, mut state, .. } = session_in(phase);
            let before = state.clone();
            assert_eq!(before.phase.kind(), phase);
            let refused = decide(&mut state, &spec, fact, NOW);
            assert_eq!(refused, Err(Refused { phase, fact: kind }));
            assert_eq!(state, before, "{phase:?} refused {kind:?}");
            refused_count += 1;
        }
    }
    assert_eq!(refused_count, 10 * 18 - TRANSITIONS.len());
}

#[test]
fn a_refusal_says_what_met() {
    let mut session = Session::asked(one());
    let refused = decide(&mut session.state, &session.spec, fact::input("more"), NOW).unwrap_err();
    assert_eq!(refused.to_string(), "a session that is Calling takes no Input");
}
