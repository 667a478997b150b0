//! Facts for the tests to tell, with the parts that do not matter filled in.

use std::collections::BTreeSet;

use mainspring_session::{
    Answer, ApprovalDecision, ApprovalId, BlobHash, CallIndex, CallNotes, Check, CheckFinding,
    EffectOutcome, Epoch, ErrorCode, Fact, FactKind, Failure, FinishReason, ForkEdit, Funding,
    Part, Problem, SessionId, StepClass, Summary, Timing, ToolCall, Usage,
};

use crate::event;
use crate::support::{STORE, fingerprint, session_id};

pub(crate) const USAGE: Usage = Usage {
    input_tokens: 10,
    output_tokens: 5,
    cached_tokens: 0,
    cache_write_tokens: 0,
    reasoning_tokens: 0,
};

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
    Fact::Input { content: vec![Part::Text { text: text.to_owned() }], step_class: None }
}

/// An input whose turn is of this class.
pub(crate) fn classed(text: &str, class: StepClass) -> Fact {
    match input(text) {
        Fact::Input { content, .. } => Fact::Input { content, step_class: Some(class) },
        other => other,
    }
}

/// The same answer after so many tokens were read.
pub(crate) fn having_read(answered: Fact, input_tokens: u64) -> Fact {
    let mut answered = answered;
    if let Fact::ModelAnswered { usage, .. } = &mut answered {
        usage.input_tokens = input_tokens;
    }
    answered
}

/// An answer of text alone.
pub(crate) fn text(text: &str) -> Answer {
    Answer { text: text.to_owned(), tool_calls: Vec::new(), reasoning: Vec::new() }
}

/// An answer that calls these tools; the ids go on from `first`: `c0`, `c1` and so on.
pub(crate) fn calls(first: usize, tools: &[&str]) -> Answer {
    let call = |(position, name): (usize, &&str)| ToolCall {
        id: format!("c{}", first + position),
        name: (*name).to_owned(),
        arguments: "{}".to_owned(),
    };
    Answer {
        text: String::new(),
        tool_calls: tools.iter().enumerate().map(call).collect(),
        reasoning: Vec::new(),
    }
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
        notes: CallNotes::default(),
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

/// A failure of a call that was too long for its model.
pub(crate) fn overflow() -> Failure {
    Failure::new(ErrorCode::MODEL_CONTEXT_OVERFLOW, "status 400")
}

pub(crate) fn summarised(step: u32, text: &str) -> Fact {
    let outcome = Ok(Summary { text: text.to_owned(), usage: USAGE, timing: TIMING });
    Fact::SummaryEnded { step, outcome }
}

pub(crate) fn no_summary(step: u32) -> Fact {
    Fact::SummaryEnded { step, outcome: Err(server_error()) }
}

pub(crate) fn model_failed(step: u32, attempt: u32, error: Failure) -> Fact {
    Fact::ModelFailed { step, attempt, error, retry_after_ms: None, streamed_chars: 0 }
}

pub(crate) fn accepted() -> Fact {
    Fact::Verified { rejection: None }
}

pub(crate) fn rejected(reason: &str) -> Fact {
    Fact::Verified { rejection: Some(reason.to_owned()) }
}

/// A check by a model ended with this score.
pub(crate) fn found(step: u32, check: Check, score: f64) -> Fact {
    let reason = if score < 0.5 { "it is wrong".to_owned() } else { String::new() };
    let finding =
        CheckFinding { score: Some(score), reason, usage: USAGE, duration_us: 90, error: None };
    Fact::Checked { step, check, finding }
}

/// A check by a model could not find out.
pub(crate) fn not_found(step: u32, check: Check) -> Fact {
    let error = Some(server_error());
    let finding = CheckFinding { error, duration_us: 90, ..CheckFinding::default() };
    Fact::Checked { step, check, finding }
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

/// A takeover with another agent.
pub(crate) fn changed(epoch: u64, fingerprint: BlobHash) -> Fact {
    Fact::Reopened { epoch: Epoch(epoch), fingerprint, store: STORE.to_owned(), held: false }
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
        funding: None,
    }
}

/// Somebody pays for the session.
pub(crate) fn funded(funding: Funding) -> Fact {
    Fact::Funded { funding }
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

/// A fact of each kind that would fit, were the phase right.
pub(crate) fn one_of_each() -> Vec<Fact> {
    let facts = vec![
        started(),
        input("hi"),
        answered(0, 1, text("yes")),
        model_failed(0, 1, server_error()),
        summarised(1, "much"),
        accepted(),
        found(0, Check::Judge, 1.0),
        returned(0, 1, "a"),
        raised(0, 1),
        policy(0, true),
        decided(0, &event::approval(0, 1, STORE), granted()),
        resolved(0, EffectOutcome::NotDone),
        Fact::TimerFired,
        cancel(),
        Fact::TurnTimedOut,
        reopened(),
        forked(None),
        funded(Funding { tenant: "acme".to_owned(), ..Funding::default() }),
    ];
    let listed = |kind| match kind {
        FactKind::Started
        | FactKind::Input
        | FactKind::ModelAnswered
        | FactKind::ModelFailed
        | FactKind::SummaryEnded
        | FactKind::Verified
        | FactKind::Checked
        | FactKind::ToolReturned
        | FactKind::ToolFailed
        | FactKind::PolicyAnswered
        | FactKind::ApprovalDecided
        | FactKind::EffectResolved
        | FactKind::TimerFired
        | FactKind::CancelRequested
        | FactKind::TurnTimedOut
        | FactKind::Reopened
        | FactKind::Forked
        | FactKind::Funded => 18,
    };
    let kinds: BTreeSet<_> = facts.iter().map(Fact::kind).collect();
    assert_eq!(kinds.len(), listed(FactKind::Started));
    facts
}
