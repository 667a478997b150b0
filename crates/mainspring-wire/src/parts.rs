//! What a request says of an agent, apart from how an API spells it: the system prompt, the tools,
//! the form of the answer, and the user's own parameters.

use std::collections::BTreeMap;

use mainspring_session::{
    AgentSpec, Api, ErrorCode, Failure, ModelSpec, OutputMode, ToolChoice, ToolMode,
};
use serde_json::value::RawValue;

use crate::node::Node;
use crate::prompt::{self, CompactTool};
use crate::schema;

/// Tool calls that one constrained answer may hold. A small model that has begun to repeat itself
/// stops here, and eight suffice for a step.
const CONSTRAINED_CALLS_MAX: u32 = 8;

/// Checks what no API can send.
pub(crate) fn check(agent: &AgentSpec, model: &ModelSpec) -> Result<(), Failure> {
    let invalid = |message: String| Failure::new(ErrorCode::AGENT_INVALID, message);
    let is_chat = matches!(model.api, Api::ChatCompletions | Api::Host);
    if model.tool_mode == ToolMode::JsonSchema && !is_chat {
        return Err(invalid(format!(
            "model \"{}\" has the tool mode json_schema, which its API does not take",
            model.name
        ))
        .with_hint("leave tool_mode out, or use api=\"chat_completions\""));
    }
    let missing = match &agent.tool_choice {
        ToolChoice::Tool(name) => agent.tool(name).is_none().then(|| format!("tool \"{name}\"")),
        ToolChoice::Required => agent.tools.is_empty().then(|| "tool".to_owned()),
        ToolChoice::Auto | ToolChoice::None => None,
    };
    if let Some(missing) = missing {
        let message = format!("agent \"{}\" must call a tool and has no {missing}", agent.name);
        return Err(invalid(message).with_hint("give it the tool, or leave tool_choice out"));
    }
    Ok(())
}

/// What holds for the choice of tools once a turn has called one.
pub(crate) fn settled(choice: &ToolChoice) -> ToolChoice {
    if choice.is_forced() { ToolChoice::Auto } else { choice.clone() }
}

/// Whether the agent has said what a parameter of this name would say.
pub(crate) fn says(agent: &AgentSpec, name: &str) -> bool {
    match name {
        "tool_choice" => agent.tool_choice != ToolChoice::Auto,
        "parallel_tool_calls" => agent.parallel_tool_calls.is_some(),
        _ => false,
    }
}

/// The system prompt of native answers: the instructions, and the schema where it has no other
/// place.
pub(crate) fn system(agent: &AgentSpec, schema_in_prompt: bool) -> String {
    let mut system = agent.instructions.clone();
    if let Some(output) = agent.output_schema.as_ref().filter(|_| schema_in_prompt) {
        append(&mut system, &prompt::output_prompt(output.get()));
    }
    system
}

/// A schema that a provider holds answers to.
pub(crate) struct Output {
    /// Its JSON.
    pub(crate) schema: String,
    /// Whether it qualifies for strict mode.
    pub(crate) strict: bool,
}

/// The output schema, if the provider is to hold answers to it.
pub(crate) fn output(agent: &AgentSpec, mode: OutputMode) -> Result<Option<Output>, Failure> {
    let Some(output) = agent.output_schema.as_ref().filter(|_| mode == OutputMode::Native) else {
        return Ok(None);
    };
    let strict = schema::qualifies_as_strict(&parse_schema(output, "output")?);
    Ok(Some(Output { schema: output.get().to_owned(), strict }))
}

/// What `json_schema` tool mode holds answers to.
pub(crate) struct Envelope<'a> {
    pub(crate) system: String,
    tools: Vec<(&'a str, Node)>,
    calls_max: u32,
    answer: Node,
}

impl<'a> Envelope<'a> {
    pub(crate) fn new(agent: &'a AgentSpec) -> Result<Self, Failure> {
        let mut tools = Vec::with_capacity(agent.tools.len());
        for tool in &agent.tools {
            let what = format!("tool \"{}\"", tool.name);
            let arguments = schema::clean(&parse_schema(&tool.parameters, &what)?);
            tools.push((tool.name.as_str(), arguments));
        }
        let output = match &agent.output_schema {
            Some(raw) => Some(schema::clean(&parse_schema(raw, "output")?)),
            None => None,
        };
        let compact: Vec<CompactTool<'_>> = agent
            .tools
            .iter()
            .zip(&tools)
            .map(|(tool, (name, arguments))| CompactTool {
                name,
                description: &tool.description,
                arguments,
            })
            .collect();
        let mut system = agent.instructions.clone();
        append(&mut system, &prompt::envelope_prompt(&compact, output.as_ref()));
        let calls_max = match agent.parallel_tool_calls {
            Some(false) => 1,
            _ => agent.limits.tool_calls_per_step_max.clamp(1, CONSTRAINED_CALLS_MAX),
        };
        let answer = output.unwrap_or_else(|| Node::object([("type", Node::text("string"))]));
        Ok(Self { system, tools, calls_max, answer })
    }

    /// The schema of answers under a choice of tools.
    pub(crate) fn schema(&self, choice: &ToolChoice) -> String {
        let answer = Some(self.answer.clone());
        let envelope = match choice {
            ToolChoice::Auto => schema::envelope(&self.tools, self.calls_max, answer),
            ToolChoice::None => schema::envelope(&[], self.calls_max, answer),
            ToolChoice::Required => schema::envelope(&self.tools, self.calls_max, None),
            ToolChoice::Tool(forced) => {
                let tools = self.tools.iter().filter(|(name, _)| name == forced);
                let tools: Vec<_> = tools.cloned().collect();
                schema::envelope(&tools, self.calls_max, None)
            }
        };
        envelope.to_json()
    }
}

/// The user's own fields of the request body, without those that are the codec's.
pub(crate) fn params<'a>(
    model: &'a ModelSpec,
    own: &[&str],
) -> Result<BTreeMap<&'a str, &'a RawValue>, Failure> {
    let Some(raw) = &model.params else {
        return Ok(BTreeMap::new());
    };
    let params: BTreeMap<&str, &RawValue> = serde_json::from_str(raw.get()).map_err(|_| {
        let shown: String = raw.get().chars().take(100).collect();
        refused(format!("params of model \"{}\" are {shown}, not a JSON object", model.name))
            .with_hint("write them as an object, such as {\"temperature\":0}")
    })?;
    if let Some(name) = own.iter().find(|name| params.contains_key(**name)) {
        return Err(refused(format!(
            "params of model \"{}\" set \"{name}\", which the engine sets itself",
            model.name
        ))
        .with_hint(format!("remove \"{name}\" from params")));
    }
    Ok(params)
}

/// Refuses a parameter that would take the place of the answer's schema.
pub(crate) fn refuse_format(model: &ModelSpec, name: &str) -> Failure {
    refused(format!(
        "params of model \"{}\" set \"{name}\", which holds the answer's schema",
        model.name
    ))
    .with_hint("remove it, or use the output mode that puts the schema into the prompt")
}

/// The fields of a parameter that is an object; none if it is not set.
pub(crate) fn object<'a>(
    model: &ModelSpec,
    name: &str,
    raw: Option<&'a RawValue>,
) -> Result<BTreeMap<&'a str, &'a RawValue>, Failure> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
        return Ok(BTreeMap::new());
    };
    serde_json::from_str(raw.get()).map_err(|_| {
        refused(format!("parameter \"{name}\" of model \"{}\" is not a JSON object", model.name))
    })
}

/// The schema as a tree.
pub(crate) fn parse_schema(raw: &RawValue, what: &str) -> Result<Node, Failure> {
    let node: Option<Node> = serde_json::from_str(raw.get()).ok();
    node.filter(|node| node.fields().is_some()).ok_or_else(|| {
        let shown: String = raw.get().chars().take(100).collect();
        Failure::new(
            ErrorCode::TOOL_SCHEMA_INVALID,
            format!("schema of {what} is {shown}, not a JSON object"),
        )
    })
}

fn refused(message: String) -> Failure {
    Failure::new(ErrorCode::AGENT_INVALID, message)
}

fn append(system: &mut String, text: &str) {
    if !system.is_empty() {
        system.push_str("\n\n");
    }
    system.push_str(text);
}
