//! What no sequence of facts may break: right, wrong, stale, doubled and reordered facts, a
//! crash at any point, a fork of any prefix. `world.rs` holds the laws.
//!
//! The seeds are fixed, so that a run is the same everywhere; a found case becomes a test.

use mainspring_session::{AgentSpec, Answer, Fact, Limits, Phase, Problem, ToolCall, Usage};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::world::{Work, World};
use crate::{fact, support};

/// One move against the session.
#[derive(Debug, Clone)]
enum Act {
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
    },
}

#[derive(Debug, Clone)]
struct How {
    well: bool,
    tools: Vec<usize>,
    problem: usize,
    tokens: u64,
    retry_after_ms: Option<u64>,
    seed: u64,
}

fn how() -> impl Strategy<Value = How> {
    (
        prop::bool::weighted(0.7),
        vec(0..5_usize, 0..5),
        0..8_usize,
        0..60_u64,
        prop::option::weighted(0.3, 0..700_000_u64),
        any::<u64>(),
    )
        .prop_map(|(well, tools, problem, tokens, retry_after_ms, seed)| How {
            well,
            tools,
            problem,
            tokens,
            retry_after_ms,
            seed,
        })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Input),
        24 => (any::<usize>(), how()).prop_map(|(pick, how)| Act::End { pick, how }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(pick, well)| Act::Late { pick, well }),
        2 => (0..8_usize).prop_map(Act::Noise),
        1 => Just(Act::Cancel),
        1 => Just(Act::TimeOut),
        2 => (0..40_000_i64).prop_map(|ms| Act::Pass { ms }),
        3 => any::<bool>().prop_map(|keep| Act::Crash { keep }),
    ]
}

/// A move, and whether the engine gets round to its orders before the next one.
fn acts() -> impl Strategy<Value = Vec<(Act, bool)>> {
    vec((act(), prop::bool::weighted(0.7)), 0..60)
}

fn agents() -> impl Strategy<Value = AgentSpec> {
    let models = prop_oneof![Just(&["a"][..]), Just(&["a", "b"][..]), Just(&["a", "b", "c"][..])];
    (models, any::<bool>(), any::<bool>()).prop_map(|(models, verify, tight)| {
        let mut spec = support::agent(models);
        spec.verify = verify;
        spec.models[0].price = Some(mainspring_session::Price {
            input_usd: 0.15,
            output_usd: 0.6,
            cached_usd: Some(0.075),
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
    let names = ["look", "fetch", "book", "send", "ghost"];
    let call = |(position, tool): (usize, &usize)| ToolCall {
        id: format!("c{}", first + position),
        name: names[*tool].to_owned(),
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
    let text = "a".repeat(how.tools.len());
    (Answer { text, tool_calls }, problems)
}

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
                    reasoning_tokens: 0,
                },
                timing: fact::TIMING,
                problems,
            }
        }
        Work::Model(step, attempt) => Fact::ModelFailed {
            step,
            attempt,
            error: if how.problem < 5 { fact::server_error() } else { fact::auth_error() },
            retry_after_ms: how.retry_after_ms,
        },
        Work::Tool(call, attempt) => {
            world.ended.push((call, attempt));
            if how.well {
                fact::returned(call.0, attempt, "ä result")
            } else {
                fact::raised(call.0, attempt)
            }
        }
        Work::Verdict => Fact::Verified { rejection: (!how.well).then(|| "no".to_owned()) },
        Work::Timer(at_us) => {
            world.now_us = world.now_us.max(at_us);
            Fact::TimerFired
        }
    }
}

fn noise(world: &World, kind: usize) -> Option<Fact> {
    Some(match kind {
        0 => fact::started(),
        1 => fact::answered(99, 1, fact::text("what?")),
        2 => fact::answered(0, 99, fact::calls(0, &["send"])),
        3 => fact::model_failed(99, 1, fact::auth_error()),
        4 => Fact::TimerFired,
        5 => fact::returned(10_000, 1, "what?"),
        6 if world.state.is_open() => fact::input("me too"),
        7 if !matches!(world.state.phase, Phase::Judging(_)) => fact::accepted(),
        _ => return None,
    })
}

fn play(world: &mut World, act: &Act) {
    match act {
        Act::Input => {
            // An engine takes a new input only when the turn before it has been written.
            if world.is_carried_out() {
                world.tell(fact::input("and?"), 0);
            }
        }
        Act::End { pick, how } => {
            if world.work.is_empty() {
                return;
            }
            let work = world.work.iter().nth(pick % world.work.len()).cloned();
            let work = work.expect("the position is inside");
            world.work.remove(&work);
            let fact = ended(world, &work, how);
            let early = matches!(fact, Fact::TimerFired) && !how.well;
            if early {
                world.tell(Fact::TimerFired, how.seed);
            }
            world.tell(fact, how.seed);
        }
        Act::Late { pick, well } => {
            let last = world.ended.len();
            if let Some((call, attempt)) = world.ended.get(pick % last.max(1)).copied() {
                let fact = match well {
                    true => fact::returned(call.0, attempt, "too late"),
                    false => fact::raised(call.0, attempt),
                };
                world.tell(fact, 1);
            }
        }
        Act::Noise(kind) => {
            if let Some(fact) = noise(world, *kind) {
                world.tell(fact, 2);
            }
        }
        Act::Cancel => world.tell(fact::cancel(), 3),
        Act::TimeOut => world.tell(Fact::TurnTimedOut, 4),
        Act::Pass { ms } => world.now_us += ms * 1000,
        Act::Crash { keep } => world.crash(*keep),
    }
}

fn run(spec: AgentSpec, acts: &[(Act, bool)]) -> World {
    let mut world = World::new(spec);
    world.tell(fact::started(), 0);
    world.carry_out();
    world.tell(fact::input("hi"), 0);
    world.carry_out();
    for (act, then_carry_out) in acts {
        play(&mut world, act);
        if *then_carry_out {
            world.carry_out();
        }
    }
    world
}

fn config(cases: u32, seed: u64) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(1500, 1))]

    #[test]
    fn no_sequence_of_facts_breaks_a_law_and_every_turn_can_end(spec in agents(), acts in acts()) {
        let mut world = run(spec, &acts);
        world.drain();
        prop_assert!(world.state.outcome.is_some());
    }
}

proptest! {
    #![proptest_config(config(200, 2))]

    #[test]
    fn every_prefix_of_a_log_can_be_taken_up_and_brought_to_its_end(
        spec in agents(),
        acts in acts(),
    ) {
        let log = run(spec.clone(), &acts).log;
        for length in 1..=log.len() {
            let mut fork = World::reopened(spec.clone(), &log[..length]);
            fork.drain();
        }
    }

    #[test]
    fn the_same_facts_lead_to_the_same_log(spec in agents(), acts in acts()) {
        prop_assert_eq!(run(spec.clone(), &acts).log, run(spec, &acts).log);
    }
}
