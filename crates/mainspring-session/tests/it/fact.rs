//! Facts for the tests to tell, with the parts that do not matter filled in.

use mainspring_session::{
    Answer, ApprovalDecision, ApprovalId, CallIndex, EffectOutcome, Epoch, ErrorCode, Fact,
    Failure, FinishReason, ForkEdit, Part, Problem, SessionId, Timing, ToolCall, Usage,
};

use crate::support::{STORE, fingerprint, session_id};

pub(crate) const USAGE: Usage =
    Usage { input_tokens: 10, output_tokens: 5, cached_tokens: 0, reasoning_tokens: 0 };

pub(crate) const TIMING: Timing = Timing { first_token_us: None, total_us: 700 };

pub(crate) fn started() -> Fact {
    Fact::Started {
        session: session_id(),
        origin: None,
        fingerprint: fingerprint(),
        store: STORE.to_owned(),
        held: false,
    }
}

pub(crate) fn input(text: &str) -> Fact {
    Fact::Input { content: vec![Part::Text { text: text.to_owned() }] }
}

/// An answer of text alone.
pub(crate) fn text(text: &str) -> Answer {
    Answer { text: text.to_owned(), tool_calls: Vec::new() }
}

/// An answer that calls these tools; the ids go on from `first`: `c0`, `c1` and so on.
pub(crate) fn calls(first: usize, tools: &[&str]) -> Answer {
    let call = |(position, name): (usize, &&str)| ToolCall {
        id: format!("c{}", first + position),
        name: (*name).to_owned(),
        arguments: "{}".to_owned(),
    };
    Answer { text: String::new(), tool_calls: tools.iter().enumerate().map(call).collect() }
}

pub(crate) fn problem(check: &str, message: &str, call: Option<u32>) -> Problem {
    Problem { check: check.to_owned(), message: message.to_owned(), call }
}

pub(crate) fn answered(step: u32, attempt: u32, answer: Answer) -> Fact {
    checked(step, attempt, answer, Vec::new())
}

/// An answer with what the engine's checks found.
pub(crate) fn checked(step: u32, attempt: u32, answer: Answer, problems: Vec<Problem>) -> Fact {
    Fact::ModelAnswered {
        step,
        attempt,
        finish_reason: finish_reason(&answer),
        answer,
        usage: USAGE,
        timing: TIMING,
        problems,
    }
}

pub(crate) fn finish_reason(answer: &Answer) -> FinishReason {
    if answer.tool_calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls }
}

/// A failure of the model server that a retry may cure.
pub(crate) fn server_error() -> Failure {
    Failure::new(ErrorCode::MODEL_SERVER_ERROR, "status 500")
}

/// A failure of the model server that no retry cures.
pub(crate) fn auth_error() -> Failure {
    Failure::new(ErrorCode::MODEL_AUTH, "status 401")
}

pub(crate) fn model_failed(step: u32, attempt: u32, error: Failure) -> Fact {
    Fact::ModelFailed { step, attempt, error, retry_after_ms: None }
}

pub(crate) fn accepted() -> Fact {
    Fact::Verified { rejection: None }
}

pub(crate) fn rejected(reason: &str) -> Fact {
    Fact::Verified { rejection: Some(reason.to_owned()) }
}

pub(crate) fn returned(call: u64, attempt: u32, text: &str) -> Fact {
    Fact::ToolReturned { call: CallIndex(call), attempt, text: text.to_owned(), duration_us: 90 }
}

pub(crate) fn boom() -> Failure {
    Failure::new(ErrorCode::TOOL_FAILED, "tool raised: boom")
}

pub(crate) fn raised(call: u64, attempt: u32) -> Fact {
    failed(call, attempt, boom())
}

pub(crate) fn failed(call: u64, attempt: u32, error: Failure) -> Fact {
    Fact::ToolFailed { call: CallIndex(call), attempt, error }
}

pub(crate) fn cancel() -> Fact {
    Fact::CancelRequested { reason: "enough".to_owned() }
}

pub(crate) fn reopened() -> Fact {
    taken(2, STORE)
}

/// A takeover by a new owner, in this store.
pub(crate) fn taken(epoch: u64, store: &str) -> Fact {
    Fact::Reopened {
        epoch: Epoch(epoch),
        fingerprint: fingerprint(),
        store: store.to_owned(),
        held: false,
    }
}

/// A takeover by an owner that does not run the session.
pub(crate) fn held(epoch: u64, store: &str) -> Fact {
    Fact::Reopened {
        epoch: Epoch(epoch),
        fingerprint: fingerprint(),
        store: store.to_owned(),
        held: true,
    }
}

pub(crate) fn forked_id() -> SessionId {
    SessionId::new("s-2").unwrap()
}

/// A fork into the session `s-2` of the same store.
pub(crate) fn forked(edit: Option<ForkEdit>) -> Fact {
    Fact::Forked {
        session: forked_id(),
        origin: None,
        fingerprint: fingerprint(),
        store: STORE.to_owned(),
        edit,
    }
}

pub(crate) fn policy(call: u64, needed: bool) -> Fact {
    Fact::PolicyAnswered { call: CallIndex(call), needed }
}

/// What a person says of the request of this id.
pub(crate) fn decided(call: u64, approval: &ApprovalId, decision: ApprovalDecision) -> Fact {
    let (approval, by) = (approval.clone(), Some("ann".to_owned()));
    Fact::ApprovalDecided { call: CallIndex(call), approval, decision, by }
}

pub(crate) fn granted() -> ApprovalDecision {
    ApprovalDecision::Granted { arguments: None }
}

pub(crate) fn edited(arguments: &str) -> ApprovalDecision {
    ApprovalDecision::Granted { arguments: Some(arguments.to_owned()) }
}

pub(crate) fn denied(message: &str) -> ApprovalDecision {
    ApprovalDecision::Denied { message: message.to_owned() }
}

pub(crate) fn resolved(call: u64, outcome: EffectOutcome) -> Fact {
    Fact::EffectResolved { call: CallIndex(call), outcome, by: Some("ann".to_owned()) }
}

pub(crate) fn done(text: &str) -> EffectOutcome {
    EffectOutcome::Done { text: text.to_owned() }
}

pub(crate) fn given_up(message: &str) -> EffectOutcome {
    EffectOutcome::Failed { message: message.to_owned() }
}
