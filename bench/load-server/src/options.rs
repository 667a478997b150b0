//! Command-line options of the load server.
//!
//! Owns their names, defaults and bounds. Invariant: an `Options` value is within bounds, so the
//! rest of the program never checks again.

use std::time::Duration;

/// Largest text, in characters, that one answer or one argument may hold.
const CHARS_MAX: u64 = 1_000_000;

/// What `--help` prints.
pub const HELP: &str = "\
usage: load-server [OPTIONS]

An OpenAI-compatible Chat Completions server without a model, for benchmarks.
Prints one line `listening 127.0.0.1:PORT`; exits when stdin closes.
Paths: POST /v1/chat/completions, GET /v1/models, GET /stats.

  --port N            port on 127.0.0.1, 0 picks a free one (default 0)
  --delay-ms N        time before each answer (default 0)
  --tool-turns N      answers that call tools before the final one (default 0)
  --tools-per-turn N  parallel tool calls in each of them (default 1)
  --tool-name NAME    function that is called (default echo)
  --argument-chars N  length of the argument `text` (default 16)
  --answer-chars N    length of the final text (default 100)
  --answer-tokens N   pieces of the final text when streamed (default 20)
  --token-gap-ms N    time between two pieces; 0 sends them at once (default 0)
  --requests-per-minute N  requests that each key may make, 0 any number (default 0)
  --fault-per-mille N requests of 1,000 that fail: 429, 500, 503, no answer, half an answer,
                      or one that is no JSON (default 0)
  --seed N            which requests fail, and how (default 1)
  --help              print this
";

/// How the server behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Port on 127.0.0.1; 0 picks a free one.
    pub port: u16,
    /// Time between a request's last byte and the answer's first.
    pub delay: Duration,
    /// How many answers of a conversation call tools before the final one.
    pub tool_turns: usize,
    /// Parallel calls in each of them, at least 1.
    pub tools_per_turn: usize,
    /// Function that is called.
    pub tool_name: String,
    /// Length of each call's `text` argument.
    pub argument_chars: usize,
    /// Length of the final text.
    pub answer_chars: usize,
    /// Streamed pieces of the final text, at most one per character.
    pub answer_tokens: usize,
    /// Time between two streamed pieces.
    pub token_gap: Duration,
    /// Requests that each key may make in any minute; 0 means any number.
    pub requests_per_minute: usize,
    /// Requests of a thousand that fail on purpose.
    pub fault_per_mille: usize,
    /// Chooses which ones, and how.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            delay: Duration::ZERO,
            tool_turns: 0,
            tools_per_turn: 1,
            tool_name: "echo".to_owned(),
            argument_chars: 16,
            answer_chars: 100,
            answer_tokens: 20,
            token_gap: Duration::ZERO,
            requests_per_minute: 0,
            fault_per_mille: 0,
            seed: 1,
        }
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Serve with these options.
    Serve(Options),
    /// Print the help text.
    Help,
}

/// Reads the command line, without the program's name.
///
/// # Errors
/// A message for the terminal: an option that does not exist, lacks its value or is out of bounds.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut options = Options::default();
    let mut args = args;
    while let Some(name) = args.next() {
        if name == "--help" {
            return Ok(Asked::Help);
        }
        let value = args.next().ok_or_else(|| format!("option \"{name}\" has no value"))?;
        set(&mut options, &name, value)?;
    }
    options.answer_tokens = options.answer_tokens.min(options.answer_chars);
    Ok(Asked::Serve(options))
}

fn set(options: &mut Options, name: &str, value: String) -> Result<(), String> {
    let number = |min: u64, max: u64| bounded(name, &value, min, max);
    let count = |min: u64, max: u64| number(min, max).map(|n| n as usize);
    let millis = || number(0, 3_600_000).map(Duration::from_millis);
    match name {
        "--port" => options.port = number(0, u64::from(u16::MAX))? as u16,
        "--delay-ms" => options.delay = millis()?,
        "--tool-turns" => options.tool_turns = count(0, 1_000_000)?,
        "--tools-per-turn" => options.tools_per_turn = count(1, 1_000)?,
        "--tool-name" => options.tool_name = function_name(value)?,
        "--argument-chars" => options.argument_chars = count(0, CHARS_MAX)?,
        "--answer-chars" => options.answer_chars = count(1, CHARS_MAX)?,
        "--answer-tokens" => options.answer_tokens = count(1, CHARS_MAX)?,
        "--token-gap-ms" => options.token_gap = millis()?,
        "--requests-per-minute" => options.requests_per_minute = count(0, 100_000_000)?,
        "--seed" => options.seed = number(1, 1_000_000)?,
        "--fault-per-mille" => options.fault_per_mille = count(0, 1_000)?,
        _ => return Err(format!("option \"{name}\" does not exist")),
    }
    Ok(())
}

fn bounded(name: &str, value: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = value.parse().ok();
    number.filter(|n| (min..=max).contains(n)).ok_or_else(|| {
        format!("option \"{name}\" got \"{value}\", allowed is a whole number from {min} to {max}")
    })
}

/// The name goes into JSON as it is, so only characters that need no escape are let in.
fn function_name(value: String) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(value);
    }
    Err(format!(
        "option \"--tool-name\" got \"{value}\", allowed are letters, digits, \"_\" and \"-\""
    ))
}
