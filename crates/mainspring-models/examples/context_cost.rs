//! What the context of model calls costs: `cargo run --release -p mainspring-models --example
//! context_cost`. Prints microseconds, the median of many rounds. It stands here because the core reads
//! no clock.

use std::time::Instant;

use mainspring_session::{
    AgentSpec, Answer, BlobHash, CallNotes, Event, Fact, FinishReason, Message, ModelSpec, Moment,
    Part, SessionId, State, Timing, ToolCall, ToolIndex, ToolSpec, Usage, decide, stand_ins,
};
use serde_json::value::RawValue;

const ROUNDS: usize = 200;

fn median_us(mut work: impl FnMut()) -> f64 {
    let mut took: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took[ROUNDS / 2]
}

fn tools() -> Vec<ToolSpec> {
    let verbs = ["create", "delete", "update", "list", "get"];
    let things = ["issue", "file", "message", "payment", "event"];
    let mut tools = Vec::new();
    for service in 0..40 {
        for verb in verbs {
            for thing in things {
                let [search, _] = stand_ins();
                let parameters = format!(
                    "{{\"type\":\"object\",\"properties\":{{\"{thing}_id\":{{\"type\":\"string\",\
                     \"description\":\"which {thing} to {verb}\"}},\"dry_run\":{{\"type\":\
                     \"boolean\",\"description\":\"only say what would happen\"}}}},\
                     \"required\":[\"{thing}_id\"]}}"
                );
                tools.push(ToolSpec {
                    name: format!("service{service}_{verb}_{thing}"),
                    description: format!("Can {verb} one {thing} of service {service}, by its id."),
                    parameters: RawValue::from_string(parameters).expect("it is JSON"),
                    ..search
                });
            }
        }
    }
    tools
}

fn search_cost() {
    let tools = tools();
    let built = median_us(|| drop(std::hint::black_box(ToolIndex::new(&tools))));
    let index = ToolIndex::new(&tools);
    let searched = median_us(|| {
        drop(std::hint::black_box(index.search("create an issue in service17", 5)));
    });
    let shown = |tools: &[ToolSpec]| serde_json::to_vec(tools).map_or(0, |json| json.len());
    let found = index.answer(&tools, r#"{"query":"create an issue in service17"}"#);
    println!("tools {}: index {built:.0} us, search {searched:.0} us", tools.len());
    println!(
        "bytes: all tools {}, the two stand-ins {}, one search result {}",
        shown(&tools),
        shown(&stand_ins()),
        found.len()
    );
}

/// A conversation of so many messages: an input, and calls with results of 2 KB.
fn conversation(count: u32) -> Vec<Message> {
    let call =
        ToolCall { id: "c0".to_owned(), name: "look".to_owned(), arguments: "{}".to_owned() };
    let message = |at: u32| match at % 2 {
        0 if at == 0 => Message::user("x".repeat(2_000)),
        1 => Message::Assistant {
            text: String::new(),
            tool_calls: vec![call.clone()],
            reasoning: Vec::new(),
        },
        _ => Message::Tool {
            call_id: "c0".to_owned(),
            name: "look".to_owned(),
            text: "word ".repeat(400),
            is_error: false,
        },
    };
    (0..count).map(message).collect()
}

fn input() -> Fact {
    Fact::Input { content: vec![Part::Text { text: "go on".to_owned() }], step_class: None }
}

fn answered(step: u32, input_tokens: u64) -> Fact {
    Fact::ModelAnswered {
        step,
        attempt: 1,
        answer: Answer { text: "x".repeat(200), ..Answer::default() },
        finish_reason: FinishReason::Stop,
        usage: Usage { input_tokens, ..Usage::default() },
        timing: Timing::default(),
        notes: CallNotes::default(),
        problems: Vec::new(),
    }
}

/// What one more step costs the core in a conversation of so many messages.
fn step_cost(count: u32, window: Option<u64>) {
    let model = ModelSpec { name: "m".to_owned(), context_tokens: window, ..ModelSpec::default() };
    let mut spec = AgentSpec { models: vec![model], ..AgentSpec::default() };
    spec.limits.steps_max = u32::MAX;
    spec.limits.tokens_max = u64::MAX;
    spec.compaction.summarise = false;
    let mut state = State::default();
    let now = Moment { at_us: 0, seed: 0 };
    let started = Fact::Started {
        session: SessionId::new("s-1").expect("the id is valid"),
        origin: None,
        fingerprint: BlobHash::of(b"agent"),
        store: String::new(),
        held: false,
    };
    decide(&mut state, &spec, started, now).expect("a session starts");
    state.messages = conversation(count);
    let began = Instant::now();
    let first = decide(&mut state, &spec, input(), now).expect("an input is taken");
    let first_us = began.elapsed().as_secs_f64() * 1e6;
    let compacted = first.iter().any(|event| matches!(event, Event::ContextCompacted(_)));
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let fact = answered(state.steps - 1, u64::from(count) * 250);
        decide(&mut state, &spec, fact, now).expect("an answer is taken");
        let began = Instant::now();
        decide(&mut state, &spec, input(), now).expect("an input is taken");
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    println!(
        "{count} messages, window {window:?}: first step {first_us:.0} us{}, each further {:.2} us",
        if compacted { " with a compaction" } else { "" },
        took[ROUNDS / 2]
    );
}

fn main() {
    search_cost();
    for count in [101, 1_001, 10_001] {
        step_cost(count, Some(100_000_000));
    }
    step_cost(10_001, Some(100_000));
}
