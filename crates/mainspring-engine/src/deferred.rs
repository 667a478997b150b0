//! Deferred tools in an agent: the two tools that stand for them, what of a spec a model is shown, and
//! what is wrong with a call through `tool_call`.

use std::borrow::Cow;

use mainspring_session::{
    AgentSpec, ErrorCode, Failure, TOOL_CALL, TOOL_SEARCH, ToolCall, ToolSpec, meant, stand_ins,
};

use crate::agent::{Agent, Binding, BoundTool};

/// Puts `tool_search` and `tool_call` before an agent's deferred tools, if it has some and they are
/// not there yet.
///
/// # Errors
/// `agent_invalid` if more tools are deferred than there are, or one of the agent's own has such a
/// name.
pub(crate) fn complete(spec: &mut AgentSpec, bindings: &mut Vec<Binding>) -> Result<(), Failure> {
    if spec.deferred == 0 {
        return Ok(());
    }
    let Some(first) = spec.tools.len().checked_sub(spec.deferred as usize) else {
        let (deferred, tools) = (spec.deferred, spec.tools.len());
        let message = format!("agent {:?} defers {deferred} tools, it has {tools}", spec.name);
        return Err(Failure::new(ErrorCode::AGENT_INVALID, message));
    };
    let there = spec.tools[..first].iter().filter(|tool| binding(spec, tool).is_some()).count();
    if there != stand_ins().len() {
        let own = spec.tools.iter().find(|tool| is_reserved(&tool.name));
        if let Some(own) = own {
            let message = format!(
                "agent {:?} defers tools and has one named {:?}, which finds or calls those",
                spec.name, own.name
            );
            return Err(Failure::new(ErrorCode::AGENT_INVALID, message)
                .with_hint("give the tool another name"));
        }
        let at = first.min(bindings.len());
        spec.tools.splice(first..first, stand_ins());
        bindings.splice(at..at, [Binding::Search, Binding::StandIn]);
        return Ok(());
    }
    for (tool, bound) in spec.tools.iter().zip(bindings) {
        if let Some(binding) = binding(spec, tool) {
            *bound = binding;
        }
    }
    Ok(())
}

fn is_reserved(name: &str) -> bool {
    [TOOL_SEARCH, TOOL_CALL].contains(&name)
}

/// Where one of the two tools runs that stand for deferred ones; none for any other tool.
pub(crate) fn binding(spec: &AgentSpec, tool: &ToolSpec) -> Option<Binding> {
    if spec.deferred == 0 || !is_reserved(&tool.name) {
        return None;
    }
    let same =
        |own: &ToolSpec| own.name == tool.name && own.parameters.get() == tool.parameters.get();
    if !stand_ins().iter().any(same) {
        return None;
    }
    Some(if tool.name == TOOL_SEARCH { Binding::Search } else { Binding::StandIn })
}

/// What of a spec a model is shown.
pub(crate) fn shown(spec: &AgentSpec) -> Cow<'_, AgentSpec> {
    if spec.deferred == 0 {
        return Cow::Borrowed(spec);
    }
    let mut shown = spec.clone();
    shown.tools = spec.listed_tools().to_vec();
    shown.deferred = 0;
    Cow::Owned(shown)
}

/// The tool that a call is for and the call as it is meant; what is wrong if there is no such tool.
pub(crate) fn target<'a, 'b>(
    agent: &'a Agent,
    call: &'b ToolCall,
) -> Result<(&'a BoundTool, Cow<'b, ToolCall>), String> {
    let bound = agent.tools.get(&call.name);
    if let Some(tool) = bound.filter(|tool| !matches!(tool.binding, Binding::StandIn)) {
        return Ok((tool, Cow::Borrowed(call)));
    }
    if bound.is_none() {
        return Err(unknown(agent, &call.name));
    }
    let Some(meant) = meant(call) else {
        return Err("the arguments of tool_call are not {\"name\": \"...\", \"arguments\": {...}}"
            .to_owned());
    };
    match agent.tools.get(&meant.name) {
        Some(tool) if !matches!(tool.binding, Binding::StandIn) => Ok((tool, Cow::Owned(meant))),
        _ => Err(unknown(agent, &meant.name)),
    }
}

/// Says that there is no such tool, and how to find one.
fn unknown(agent: &Agent, name: &str) -> String {
    let name = crate::check::seen(name);
    let known = crate::check::known(agent);
    match agent.spec.deferred {
        0 => format!("there is no tool {name:?}, the tools are: {known}"),
        _ => format!(
            "there is no tool {name:?}; use tool_search to find one, then tool_call to call it; the \
             tools without a search are: {known}"
        ),
    }
}

impl Agent {
    /// What `tool_search` answers.
    pub(crate) fn find_tools(&self, arguments: &str) -> String {
        self.index.answer(self.spec.deferred_tools(), arguments)
    }
}
