//! What routing costs: agents of one model and of two play the same sessions through the real core,
//! and a market with prompt caches writes the bill.
//!
//! A session is a few turns of tool rounds with a long prefix. For each step it is fixed beforehand
//! whether the small model gets it wrong, in which way, whether the user's check sees it, and
//! whether it can mend it; so all fleets meet the same steps. `examples/bill.rs` prints the table.

use mainspring_session::{
    ActiveModelCall, AgentSpec, Answer, CallNotes, Command, Effect, Event, Fact, FinishReason,
    Limits, Message, ModelSpec, Moment, Part, Price, Problem, RouteDecided, RouteSpec, SessionId,
    State, Timing, ToolCall, ToolSpec, Usage, commands, decide,
};
use serde_json::value::RawValue;

use crate::rng::Rng;

const CACHE_US: i64 = 300_000_000;
/// Tokens from which on providers keep a prefix, and in steps of how many.
const CACHED_MIN: u64 = 1024;
const CACHED_STEP: u64 = 128;
const PREFIX_TOKENS: u64 = 6_000;
const LARGE_WRONG: f64 = 0.02;

/// Two models' prices.
#[derive(Debug, Clone, Copy)]
pub struct Market {
    /// Small to large.
    pub name: &'static str,
    /// Of the small model.
    pub small: Price,
    /// Of the large one.
    pub large: Price,
}

/// US dollars for a million tokens read, written and read from the cache.
const fn price(input_usd: f64, output_usd: f64, cached_usd: f64) -> Price {
    Price { input_usd, output_usd, cached_usd: Some(cached_usd), cache_write_usd: None, long: None }
}

/// Pairs of prices, from far apart to close together; two without a discount for cached tokens.
pub const MARKETS: [Market; 5] = [
    Market { name: "1:17", small: price(0.15, 0.6, 0.075), large: price(2.5, 10.0, 1.25) },
    Market { name: "1:5", small: price(0.25, 2.0, 0.025), large: price(1.25, 10.0, 0.125) },
    Market { name: "1:3", small: price(1.0, 5.0, 0.1), large: price(3.0, 15.0, 0.3) },
    Market { name: "1:2", small: price(1.5, 7.5, 0.15), large: price(3.0, 15.0, 0.3) },
    Market { name: "1:3, no cache", small: price(1.0, 5.0, 1.0), large: price(3.0, 15.0, 3.0) },
];

/// Who works: positions are the tiers of the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fleet {
    /// The small model alone.
    Small,
    /// The large model alone.
    Large,
    /// Both, as the core routes them.
    Cascade,
}

/// What the sessions of a fleet came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bill {
    /// US dollars.
    pub usd: f64,
    /// Steps of the sessions, repairs and escalations not counted.
    pub steps: u64,
    /// Steps that were accepted although they were wrong, or that failed their turn.
    pub wrong: u64,
    /// Calls of the small model and of the large one.
    pub calls: [u64; 2],
    /// Decisions between the models.
    pub decided: u64,
    /// Of these, those that tried another model to learn about it.
    pub explored: u64,
}

impl Bill {
    /// Share of the steps that are right.
    #[must_use]
    pub fn quality(&self) -> f64 {
        1.0 - self.wrong as f64 / self.steps as f64
    }
}

/// One step as it is fixed beforehand.
struct Round {
    /// Below the rate of failure: the small model gets it wrong.
    small: f64,
    large: f64,
    of_form: bool,
    seen: bool,
    mendable: bool,
    result_tokens: u64,
    written_tokens: u64,
}

struct Turn {
    rounds: Vec<Round>,
    question_tokens: u64,
    idle_us: i64,
}

fn script(seed: u64) -> Vec<Turn> {
    let mut rng = Rng::new(seed);
    let turns = rng.between(1, 8);
    let mut turn = || Turn {
        rounds: (0..=rng.between(0, 8))
            .map(|_| Round {
                small: rng.share(),
                large: rng.share(),
                of_form: rng.share() < 0.5,
                seen: rng.share() < 0.9,
                mendable: rng.share() < 0.5,
                result_tokens: rng.between(200, 3_000),
                written_tokens: rng.between(40, 300),
            })
            .collect(),
        question_tokens: rng.between(20, 400),
        idle_us: match rng.between(0, 9) {
            0 => 1_200_000_000,
            _ => i64::try_from(rng.between(5, 90)).unwrap_or(0) * 1_000_000,
        },
    };
    (0..turns).map(|_| turn()).collect()
}

/// A text of so many tokens: words of three letters, none twice in a row of thousands.
fn text(tokens: u64) -> String {
    let letter = |number: u64| char::from(b'a' + u8::try_from(number % 26).unwrap_or(0));
    let word = |number: u64| [letter(number / 676), letter(number / 26), letter(number), ' '];
    (0..tokens).flat_map(word).collect()
}

fn model(name: &str, price: Price) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        base_url: "http://127.0.0.1:1/v1".to_owned(),
        price: Some(price),
        ..ModelSpec::default()
    }
}

fn spec(market: Market, fleet: Fleet, route: RouteSpec) -> AgentSpec {
    let (small, large) = (model("small", market.small), model("large", market.large));
    let look = ToolSpec {
        name: "look".to_owned(),
        description: String::new(),
        parameters: RawValue::from_string(r#"{"type":"object"}"#.to_owned()).expect("JSON"),
        effect: Effect::Read,
        timeout_ms: 30_000,
        attempts_max: 1,
        approve: mainspring_session::Approve::Never,
        reconcile: false,
    };
    AgentSpec {
        name: "agent".to_owned(),
        instructions: text(PREFIX_TOKENS),
        tools: vec![look],
        models: match fleet {
            Fleet::Small => vec![small],
            Fleet::Large => vec![large],
            Fleet::Cascade => vec![small, large],
        },
        verify: true,
        limits: Limits { repairs_max: 4, steps_max: 200, ..Limits::default() },
        route: Some(Box::new(route)),
        ..AgentSpec::default()
    }
}

/// What a provider has cached of a session's prompts.
#[derive(Clone, Copy, Default)]
struct Cache {
    messages: usize,
    rewinds: u32,
    used_us: i64,
}

struct Play {
    fleet: Fleet,
    fail: f64,
    spec: AgentSpec,
    session: SessionId,
    state: State,
    now_us: i64,
    caches: [Cache; 2],
    turns: Vec<Turn>,
    turn: usize,
    round: usize,
    wrong: bool,
    bill: Bill,
}

/// Plays so many sessions; the small model gets a share `fail` of their steps wrong.
#[must_use]
pub fn play(market: Market, fleet: Fleet, fail: f64, sessions: u64) -> Bill {
    play_with(market, fleet, fail, sessions, &RouteSpec::default())
}

/// Like [`play`], with a route that is not the default one.
#[must_use]
pub fn play_with(
    market: Market,
    fleet: Fleet,
    fail: f64,
    sessions: u64,
    route: &RouteSpec,
) -> Bill {
    let mut sum = Bill::default();
    for seed in 0..sessions {
        let spec = spec(market, fleet, route.clone());
        let bill = session(spec, fleet, fail, seed);
        sum.usd += bill.usd;
        sum.steps += bill.steps;
        sum.wrong += bill.wrong;
        sum.decided += bill.decided;
        sum.explored += bill.explored;
        sum.calls = [sum.calls[0] + bill.calls[0], sum.calls[1] + bill.calls[1]];
    }
    sum
}

fn session(spec: AgentSpec, fleet: Fleet, fail: f64, seed: u64) -> Bill {
    let session = SessionId::new(&format!("bill-{seed}")).expect("an id");
    let mut play = Play {
        fleet,
        fail,
        spec,
        session: session.clone(),
        state: State::default(),
        now_us: 1_000_000_000_000,
        caches: [Cache::default(); 2],
        turns: script(seed),
        turn: 0,
        round: 0,
        wrong: false,
        bill: Bill::default(),
    };
    play.tell(Fact::Started {
        session,
        origin: None,
        fingerprint: mainspring_session::BlobHash::of(b"bill"),
        store: String::new(),
        held: false,
    });
    for turn in 0..play.turns.len() {
        (play.turn, play.round) = (turn, 0);
        play.now_us += play.turns[turn].idle_us;
        let content = vec![Part::Text { text: text(play.turns[turn].question_tokens) }];
        play.tell(Fact::Input { content, step_class: None });
        // A turn that failed leaves the rest of its steps undone, so they are wrong.
        let left = (play.turns[turn].rounds.len() - play.round) as u64;
        play.bill.steps += left;
        play.bill.wrong += left;
    }
    play.bill.usd = play.state.cost_usd;
    play.bill
}

impl Play {
    /// Tells a fact and carries out what follows, until the turn has ended.
    fn tell(&mut self, fact: Fact) {
        let mut facts = vec![fact];
        while let Some(fact) = facts.pop() {
            let seed = Moment::seed_of(&self.session, self.state.next_seq);
            let now = Moment { at_us: self.now_us, seed };
            let events = decide(&mut self.state, &self.spec, fact, now).expect("the fact fits");
            for event in &events {
                if let Event::RouteDecided(RouteDecided { decision: Some(made), .. }) = event {
                    self.bill.decided += 1;
                    self.bill.explored += u64::from(made.decision.explored);
                }
            }
            for command in commands(&self.state, &self.spec, &events) {
                facts.extend(self.obey(command));
            }
        }
    }

    fn obey(&mut self, command: Command) -> Option<Fact> {
        match command {
            Command::CallModel(call) => Some(self.answer(call)),
            Command::Verify => Some(self.verdict()),
            Command::CallTool { call, attempt } => {
                self.now_us += 1_000_000;
                let result = text(self.turns[self.turn].rounds[self.round - 1].result_tokens);
                Some(Fact::ToolReturned { call, attempt, text: result, duration_us: 1_000_000 })
            }
            Command::Finish | Command::CancelOutstanding => None,
            other => panic!("{other:?} was not expected"),
        }
    }

    /// Whether the model works as the small one.
    fn is_small(&self, tier: u32) -> bool {
        self.fleet == Fleet::Small || self.fleet == Fleet::Cascade && tier == 0
    }

    fn answer(&mut self, call: ActiveModelCall) -> Fact {
        self.now_us += 3_000_000;
        let small = self.is_small(call.tier);
        self.bill.calls[usize::from(!small)] += 1;
        let turn = &self.turns[self.turn];
        let round = &turn.rounds[self.round];
        let fails = if small { round.small < self.fail } else { round.large < LARGE_WRONG };
        let mended = self.state.route.step_repairs > 0 && round.mendable;
        self.wrong = fails && !mended;
        let of_form = self.wrong && round.seen && round.of_form;
        let last = self.round + 1 == turn.rounds.len();
        let written = text(round.written_tokens);
        let usage = self.usage(call.tier, round.written_tokens);
        let answer = match last {
            true => Answer { text: written, ..Answer::default() },
            false => {
                let id = format!("c{}", self.state.tool_call_count);
                let arguments = "{\"n\":1}".to_owned();
                let tool_calls = vec![ToolCall { id, name: "look".to_owned(), arguments }];
                Answer { text: written, tool_calls, ..Answer::default() }
            }
        };
        let problem = || Problem {
            check: "parse".to_owned(),
            message: "it is not JSON".to_owned(),
            call: None,
        };
        Fact::ModelAnswered {
            step: call.step,
            attempt: call.attempt,
            finish_reason: if last { FinishReason::Stop } else { FinishReason::ToolCalls },
            answer,
            usage,
            timing: Timing::default(),
            notes: CallNotes::default(),
            problems: of_form.then(problem).into_iter().collect(),
        }
    }

    /// The user's check: it sees most mistakes, and nothing wrong in what is right.
    fn verdict(&mut self) -> Fact {
        let seen = self.turns[self.turn].rounds[self.round].seen;
        if self.wrong && seen {
            return Fact::Verified { rejection: Some("it is wrong".to_owned()) };
        }
        self.bill.steps += 1;
        self.bill.wrong += u64::from(self.wrong);
        self.round += 1;
        Fact::Verified { rejection: None }
    }

    /// The tokens of a call, with what the provider has of its prompt.
    fn usage(&mut self, tier: u32, output_tokens: u64) -> Usage {
        let state = &self.state;
        let cache = &mut self.caches[tier as usize];
        if cache.rewinds != state.route.rewinds {
            cache.rewinds = state.route.rewinds;
            cache.messages = cache.messages.min(state.route.step_from as usize);
        }
        let warm = cache.used_us > 0 && self.now_us - cache.used_us < CACHE_US;
        let known = cache.messages.min(state.messages.len());
        let cached = match warm {
            true => PREFIX_TOKENS + tokens(&state.messages[..known]),
            false => 0,
        };
        let cached_tokens =
            if cached < CACHED_MIN { 0 } else { cached / CACHED_STEP * CACHED_STEP };
        cache.messages = state.messages.len();
        cache.used_us = self.now_us;
        let input_tokens = PREFIX_TOKENS + tokens(&state.messages);
        Usage { input_tokens, output_tokens, cached_tokens, ..Usage::default() }
    }
}

fn tokens(messages: &[Message]) -> u64 {
    messages.iter().map(|message| message.bytes() as u64 / 4).sum()
}

/// The cheapest fleet of one model that is at least as good.
#[must_use]
pub fn best_single(small: Bill, large: Bill, cascade: Bill) -> (&'static str, Bill) {
    match small.quality() >= cascade.quality() && small.usd <= large.usd {
        true => ("small", small),
        false => ("large", large),
    }
}
