//! Checks on an answer before it counts, cheapest first. What they find becomes part of the log.

use jsonschema::Validator;
use mainspring_session::{Answer, ErrorCode, Failure, FinishReason, Problem};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::agent::Agent;
use crate::deferred;

/// Schema errors told about one text; more would not help a model.
const ERRORS_TOLD_MAX: usize = 3;
/// Characters of a seen value in a message.
const SEEN_CHARS_MAX: usize = 200;

/// A compiled JSON Schema. References to other documents are refused, never fetched.
pub(crate) struct Schema(Validator);

impl Schema {
    /// Compiles a schema.
    pub(crate) fn compile(schema: &RawValue, whose: &str) -> Result<Self, Failure> {
        let invalid = |error: &dyn std::fmt::Display| {
            let message = format!("the JSON schema of {whose} is not valid: {error}");
            Failure::new(ErrorCode::TOOL_SCHEMA_INVALID, message)
        };
        let value: Value = serde_json::from_str(schema.get()).map_err(|error| invalid(&error))?;
        jsonschema::validator_for(&value).map(Self).map_err(|error| invalid(&error))
    }

    /// What is wrong with a JSON text, in words; nothing if it fits.
    fn problem(&self, text: &str) -> Option<String> {
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return Some(format!("not valid JSON ({error}): {}", seen(text))),
        };
        if self.0.is_valid(&value) {
            return None;
        }
        let errors: Vec<_> = self.0.iter_errors(&value).take(ERRORS_TOLD_MAX).map(told).collect();
        Some(errors.join("; "))
    }
}

fn told(error: jsonschema::ValidationError<'_>) -> String {
    let path = error.instance_path().to_string();
    let at = if path.is_empty() { String::new() } else { format!("at {path}: ") };
    seen(&format!("{at}{error}"))
}

pub(crate) fn seen(text: &str) -> String {
    match text.char_indices().nth(SEEN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Gives calls without arguments an empty object, which is what such models mean.
pub(crate) fn normalise(answer: &mut Answer) {
    for call in &mut answer.tool_calls {
        if call.arguments.trim().is_empty() {
            "{}".clone_into(&mut call.arguments);
        }
    }
}

/// What is wrong with arguments for a tool; nothing if they fit.
pub(crate) fn arguments(tool: &crate::agent::BoundTool, arguments: &str) -> Option<String> {
    tool.schema.problem(arguments)
}

/// What is wrong with an answer; nothing if it may count.
pub(crate) fn check(agent: &Agent, answer: &Answer, finish_reason: FinishReason) -> Vec<Problem> {
    if let Some(problem) = cut_off(finish_reason) {
        return vec![problem];
    }
    if !answer.tool_calls.is_empty() {
        return tool_calls(agent, answer);
    }
    if answer.text.trim().is_empty() {
        return vec![whole("empty", "it has neither text nor tool calls")];
    }
    let found = agent.output.as_ref().and_then(|schema| schema.problem(&answer.text));
    found
        .map(|found| whole("output_schema", &format!("it does not fit the output schema: {found}")))
        .into_iter()
        .collect()
}

fn cut_off(finish_reason: FinishReason) -> Option<Problem> {
    match finish_reason {
        FinishReason::Length => {
            Some(whole("finish_reason", "it was cut off at the model's token limit"))
        }
        FinishReason::ContentFilter => {
            Some(whole("finish_reason", "the provider withheld it for its content"))
        }
        _ => None,
    }
}

fn whole(check: &str, message: &str) -> Problem {
    Problem { check: check.to_owned(), message: message.to_owned(), call: None }
}

fn tool_calls(agent: &Agent, answer: &Answer) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (position, call) in (0..).zip(&answer.tool_calls) {
        let (tool, meant) = match deferred::target(agent, call) {
            Ok(target) => target,
            Err(message) => {
                let check = "tool_unknown".to_owned();
                problems.push(Problem { check, message, call: Some(position) });
                continue;
            }
        };
        if let Some(found) = tool.schema.problem(&meant.arguments) {
            problems.push(Problem {
                check: "tool_arguments".to_owned(),
                message: format!("the arguments of tool {:?} do not fit: {found}", meant.name),
                call: Some(position),
            });
        }
    }
    problems
}

pub(crate) fn known(agent: &Agent) -> String {
    let names: Vec<_> = agent.spec.listed_tools().iter().map(|tool| tool.name.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { seen(&names.join(", ")) }
}
