//! Random moves against a session, for the laws that hold of every log.

use mainspring_session::{
    AgentSpec, Answer, ApprovalDecision, ApprovalId, CallNotes, CallStatus, Check, EffectOutcome,
    Fact, ForkEdit, Limits, Part, Phase, Problem, RouteSpec, ToolCall, Usage,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::world::{Owner, Work, World};
use crate::{fact, support};

/// One move against the session.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Input,
    /// Something under way ends, well or badly.
    End {
        pick: usize,
        how: How,
    },
    /// A tool call that has already ended ends again, or one that never was.
    Late {
        pick: usize,
        well: bool,
    },
    /// A fact that no order asked for.
    Noise(usize),
    Cancel,
    TimeOut,
    Pass {
        ms: i64,
    },
    Crash {
        keep: bool,
        owner: Owner,
    },
    /// A person answers a request: one that waits, an old one, or one that never was.
    Decide {
        pick: usize,
        decision: ApprovalDecision,
    },
    /// A person says what became of a call, asked or not.
    Resolve {
        pick: usize,
        outcome: EffectOutcome,
    },
    Fork {
        pick: usize,
        edit: usize,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct How {
    well: bool,
    tools: Vec<usize>,
    problem: usize,
    tokens: u64,
    retry_after_ms: Option<u64>,
}

const TOOLS: [&str; 9] = ["look", "fetch", "book", "send", "pay", "order", "move", "wire", "ghost"];

fn how() -> impl Strategy<Value = How> {
    (
        prop::bool::weighted(0.7),
        vec(0..TOOLS.len(), 0..5),
        0..8_usize,
        0..60_u64,
        prop::option::weighted(0.3, 0..700_000_u64),
    )
        .prop_map(|(well, tools, problem, tokens, retry_after_ms)| How {
            well,
            tools,
            problem,
            tokens,
            retry_after_ms,
        })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Input),
        24 => (any::<usize>(), how()).prop_map(|(pick, how)| Act::End { pick, how }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(pick, well)| Act::Late { pick, well }),
        3 => (0..13_usize).prop_map(Act::Noise),
        1 => Just(Act::Cancel),
        1 => Just(Act::TimeOut),
        2 => (0..40_000_i64).prop_map(|ms| Act::Pass { ms }),
        4 => (any::<bool>(), owner()).prop_map(|(keep, owner)| Act::Crash { keep, owner }),
        8 => (any::<usize>(), decision())
            .prop_map(|(pick, decision)| Act::Decide { pick, decision }),
        4 => (any::<usize>(), outcome()).prop_map(|(pick, outcome)| Act::Resolve { pick, outcome }),
        1 => (any::<usize>(), 0..6_usize).prop_map(|(pick, edit)| Act::Fork { pick, edit }),
    ]
}

fn owner() -> impl Strategy<Value = Owner> {
    (prop::bool::weighted(0.25), prop::bool::weighted(0.3))
        .prop_map(|(copy, held)| Owner { copy, held })
}

fn decision() -> impl Strategy<Value = ApprovalDecision> {
    prop_oneof![
        3 => Just(fact::granted()),
        1 => Just(fact::edited(r#"{"amount":90}"#)),
        1 => Just(fact::denied("no, it is too much")),
    ]
}

fn outcome() -> impl Strategy<Value = EffectOutcome> {
    prop_oneof![
        Just(fact::done("it was done")),
        Just(EffectOutcome::NotDone),
        Just(undecided()),
        Just(fact::given_up("nobody knows")),
    ]
}

/// A move, and whether the engine gets round to its orders before the next one.
pub(crate) fn acts() -> impl Strategy<Value = Vec<(Act, bool)>> {
    vec((act(), prop::bool::weighted(0.7)), 0..60)
}

pub(crate) fn agents() -> impl Strategy<Value = AgentSpec> {
    let models = prop_oneof![Just(&["a"][..]), Just(&["a", "b"][..]), Just(&["a", "b", "c"][..])];
    let windows = prop_oneof![Just(None), Just(Some(300)), Just(Some(1_000))];
    let context = (windows, any::<bool>());
    let route = (any::<bool>(), any::<bool>(), any::<bool>(), 0..3_u32);
    let how = (models, any::<bool>(), any::<bool>(), context, route);
    how.prop_map(|(models, verify, tight, context, route)| {
        let mut spec = support::asking(models);
        spec.models[0].context_tokens = context.0;
        spec.compaction.summarise = context.1;
        spec.verify = verify;
        let (routed, judge, show_draft, agreement) = route;
        if routed {
            let mut route = RouteSpec { agreement, show_draft, ..RouteSpec::default() };
            route.judge = judge.then(|| support::model("judge"));
            route.policy.explore = 0.3;
            spec.route = Some(Box::new(route));
        }
        spec.models[0].price = Some(mainspring_session::Price {
            input_usd: 0.15,
            output_usd: 0.6,
            cached_usd: Some(0.075),
            cache_write_usd: None,
            long: None,
        });
        if tight {
            spec.limits = Limits {
                steps_max: 5,
                tokens_max: 200,
                tool_calls_per_step_max: 2,
                model_attempts_max: 2,
                repairs_max: 1,
                tool_result_bytes_max: 3,
                ..Limits::default()
            };
        }
        spec
    })
}

fn answer(how: &How, first: usize) -> (Answer, Vec<Problem>) {
    let call = |(position, tool): (usize, &usize)| ToolCall {
        id: format!("c{}", first + position),
        name: TOOLS[*tool].to_owned(),
        arguments: "{}".to_owned(),
    };
    let tool_calls: Vec<_> = how.tools.iter().enumerate().map(call).collect();
    let count = u32::try_from(tool_calls.len()).unwrap();
    let problems = match how.problem {
        0 => vec![fact::problem("parse", "not JSON", None)],
        1 if count > 0 => vec![fact::problem("tool_unknown", "no such tool", Some(0))],
        2 if count > 0 => vec![
            fact::problem("tool_arguments", "not an object", Some(count - 1)),
            fact::problem("tool_arguments", "not an object", Some(0)),
        ],
        3 if count > 0 => vec![
            fact::problem("tool_arguments", "not an object", Some(0)),
            fact::problem("finish_reason", "cut off", None),
        ],
        _ => Vec::new(),
    };
    // Long enough for small windows to fill.
    let text = "a".repeat(how.tools.len() * 200);
    (Answer { text, tool_calls, reasoning: vec![] }, problems)
}

fn undecided() -> EffectOutcome {
    EffectOutcome::Undecided { message: "the bank does not answer".to_owned() }
}

/// What comes of work that ended.
fn ended(world: &mut World, work: &Work, how: &How) -> Fact {
    match *work {
        Work::Model(step, attempt) if how.well => {
            let first = usize::try_from(world.state.tool_call_count).unwrap();
            let (answer, problems) = answer(how, first);
            Fact::ModelAnswered {
                step,
                attempt,
                finish_reason: fact::finish_reason(&answer),
                answer,
                usage: Usage {
                    input_tokens: how.tokens,
                    output_tokens: how.tokens / 7,
                    cached_tokens: how.tokens / 3,
                    cache_write_tokens: 0,
                    reasoning_tokens: 0,
                },
                timing: fact::TIMING,
                notes: CallNotes::default(),
                problems,
            }
        }
        Work::Summary(step) if how.well => fact::summarised(step, "something was said"),
        Work::Summary(step) => fact::no_summary(step),
        Work::Model(step, attempt) => Fact::ModelFailed {
            step,
            attempt,
            error: match how.problem {
                0..4 => fact::server_error(),
                4..6 => fact::overflow(),
                _ => fact::auth_error(),
            },
            retry_after_ms: how.retry_after_ms,
            streamed_chars: u64::from(how.tokens.is_multiple_of(3)) * how.tokens,
        },
        Work::Tool(call, attempt) => {
            world.ended.push((call, attempt));
            if how.well {
                fact::returned(call.0, attempt, "ä result")
            } else {
                fact::raised(call.0, attempt)
            }
        }
        Work::Policy(call) => fact::policy(call.0, how.problem < 4),
        Work::Reconcile(call) => {
            let outcome = match how.problem {
                0 | 1 => fact::done("it had been done"),
                2 | 3 => EffectOutcome::NotDone,
                4 => fact::given_up("it is gone"),
                _ => undecided(),
            };
            fact::resolved(call.0, outcome)
        }
        Work::Check(step, check) if how.problem == 7 => fact::not_found(step, check),
        Work::Check(step, check) => fact::found(step, check, if how.well { 1.0 } else { 0.0 }),
        Work::Verdict => Fact::Verified { rejection: (!how.well).then(|| "no".to_owned()) },
        Work::Timer(at_us) => {
            world.now_us = world.now_us.max(at_us);
            Fact::TimerFired
        }
    }
}

/// A noise that is recorded, and one that may be just in time.
const LATE: usize = 10;
const EARLY: usize = 11;

/// Facts that no order asked for, and that must not count.
fn noise(world: &World, kind: usize) -> Option<Fact> {
    let mut calls = world.state.calls().iter();
    Some(match kind {
        0 if world.state.session.is_some() => fact::started(),
        1 => fact::answered(99, 1, fact::text("what?")),
        2 => fact::answered(0, 99, fact::calls(0, &["send"])),
        3 => fact::model_failed(99, 1, fact::auth_error()),
        4 if world.state.is_open() => fact::input("me too"),
        5 if !matches!(&world.state.phase, Phase::Judging(pending) if pending.verify) => {
            fact::accepted()
        }
        12 => fact::found(99, Check::Judge, 0.0),
        6 => {
            // What nobody asked a policy: about a call that has begun, or while nobody runs it.
            let asked = |status: &CallStatus| *status == CallStatus::Planned(None);
            let held = world.state.held;
            fact::policy(calls.find(|call| held || !asked(&call.status))?.index.0, false)
        }
        7 => {
            let found_out = |status: &CallStatus| *status != CallStatus::Unknown;
            let call = calls.find(|call| found_out(&call.status))?;
            fact::resolved(call.index.0, EffectOutcome::NotDone)
        }
        8 => {
            let stale = ApprovalId::named("never asked");
            fact::decided(calls.next()?.index.0, &stale, fact::granted())
        }
        9 => fact::resolved(10_000, EffectOutcome::NotDone),
        _ => return None,
    })
}

fn edit(world: &World, kind: usize) -> Option<ForkEdit> {
    match kind {
        0 => {
            let index = u32::try_from(world.state.messages.len()).unwrap().checked_sub(1)?;
            let content = vec![Part::Text { text: "something else".to_owned() }];
            Some(ForkEdit::Message { index, content })
        }
        1 => {
            let call = world.state.calls().last()?.index;
            Some(ForkEdit::Call { call, text: "as if".to_owned() })
        }
        2 => matches!(world.state.phase, Phase::Judging(_))
            .then(|| ForkEdit::Answer { text: "better".to_owned() }),
        _ => None,
    }
}

fn play(world: &mut World, act: &Act) {
    match act {
        Act::Input => {
            // An engine takes a new input only when the turn before it has been written.
            if world.is_carried_out() {
                world.tell(fact::input("and?"));
            }
        }
        Act::End { pick, how } => end(world, *pick, how),
        Act::Late { pick, well } => {
            let last = world.ended.len();
            if let Some((call, attempt)) = world.ended.get(pick % last.max(1)).copied() {
                let fact = match well {
                    true => fact::returned(call.0, attempt, "too late"),
                    false => fact::raised(call.0, attempt),
                };
                world.tell(fact);
            }
        }
        Act::Noise(LATE) => world.tell(fact::returned(10_000, 1, "what?")),
        Act::Noise(EARLY) => world.tell(Fact::TimerFired),
        Act::Noise(kind) => {
            if let Some(fact) = noise(world, *kind) {
                world.tell_in_vain(fact);
            }
        }
        Act::Cancel => world.tell(fact::cancel()),
        Act::TimeOut if world.state.waits_for_people() => world.tell_in_vain(Fact::TurnTimedOut),
        Act::TimeOut => world.tell(Fact::TurnTimedOut),
        Act::Pass { ms } => world.now_us += ms * 1000,
        Act::Crash { keep, owner } => world.crash(*keep, *owner),
        Act::Decide { pick, decision } => {
            let mut requests = world.requests();
            // The newest requests twice, so that most answers count.
            let newest: Vec<_> = requests.iter().rev().take(3).cloned().collect();
            requests.extend(newest);
            requests.push((mainspring_session::CallIndex(0), ApprovalId::named("never asked")));
            let (call, approval) = &requests[pick % requests.len()];
            world.tell(fact::decided(call.0, approval, decision.clone()));
        }
        Act::Resolve { pick, outcome } => {
            let calls = world.state.calls();
            let call = calls.get(pick % calls.len().max(1)).map_or(0, |call| call.index.0);
            world.tell(fact::resolved(call, outcome.clone()));
        }
        Act::Fork { pick, edit: kind } => {
            if world.is_carried_out() {
                let length = 1 + pick % world.log.len();
                let edit = edit(&world.cut(length), *kind);
                world.fork(length, edit);
            }
        }
    }
}

fn end(world: &mut World, pick: usize, how: &How) {
    if world.work.is_empty() {
        return;
    }
    let work = world.work.iter().nth(pick % world.work.len()).cloned();
    let work = work.expect("the position is inside");
    world.work.remove(&work);
    let fact = ended(world, &work, how);
    if matches!(fact, Fact::TimerFired) && !how.well {
        world.tell(Fact::TimerFired);
    }
    world.tell(fact);
}

pub(crate) fn run(spec: AgentSpec, acts: &[(Act, bool)]) -> World {
    let mut world = World::new(spec);
    world.tell(fact::started());
    world.carry_out();
    world.tell(fact::input("hi"));
    world.carry_out();
    for (act, then_carry_out) in acts {
        play(&mut world, act);
        if *then_carry_out {
            world.carry_out();
        }
    }
    world
}

pub(crate) fn config(cases: u32, seed: u64) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    }
}
