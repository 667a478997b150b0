//! Events that the tests expect, with the parts that do not matter filled in.

use mainspring_session::{
    Answer, AnswerRejected, AnswerVerified, ApprovalDecided, ApprovalDecision, ApprovalId,
    ApprovalRequested, CallIndex, CallNotes, Check, CheckFinished, CheckStarted, EffectId,
    EffectOutcome, EffectResolved, EffectUnknown, Epoch, EpochTaken, ErrorCode, Event, Failure,
    ForkEdit, InputReceived, ModelCallFailed, ModelCallFinished, ModelCallStarted, Part, Problem,
    RejectAction, RouteDecided, SCHEMA_VERSION, SessionFinished, SessionForked, SessionStarted,
    SummaryFailed, SummaryFinished, ToolCallFailed, ToolCallFinished, ToolCallLate,
    ToolCallStarted, Usage,
};

use crate::fact::{TIMING, USAGE, finish_reason, forked_id};
use crate::support::{STORE, fingerprint, session_id};

pub(crate) const FIRST: &str = "small first: its answer is checked";
pub(crate) const ONLY: &str = "the only model";

pub(crate) fn session_started() -> Event {
    Event::SessionStarted(SessionStarted {
        schema: SCHEMA_VERSION,
        session: session_id(),
        agent: "clerk".to_owned(),
        fingerprint: fingerprint(),
        origin: None,
        store: STORE.to_owned(),
        held: false,
    })
}

/// The fork into `s-2` of a session whose owner had the epoch before this one.
pub(crate) fn forked(epoch: u64, edit: Option<ForkEdit>) -> Event {
    Event::SessionForked(SessionForked {
        session: forked_id(),
        parent: session_id(),
        epoch: Epoch(epoch),
        agent: "clerk".to_owned(),
        fingerprint: fingerprint(),
        origin: None,
        store: STORE.to_owned(),
        edit,
    })
}

pub(crate) fn input(text: &str) -> Event {
    let content = vec![Part::Text { text: text.to_owned() }];
    Event::InputReceived(InputReceived { content, step_class: None })
}

pub(crate) fn route(step: u32, tier: u32, model: &str, reason: &str) -> Event {
    Event::RouteDecided(RouteDecided {
        step,
        tier,
        model: model.to_owned(),
        reason: reason.to_owned(),
        decision: None,
    })
}

/// A model call that sends the first `count` messages.
pub(crate) fn calling(step: u32, attempt: u32, tier: u32, count: u32) -> Event {
    let messages = vec![(0, count)];
    let (class, decided_us) = (None, None);
    Event::ModelCallStarted(ModelCallStarted {
        step,
        attempt,
        tier,
        messages,
        class,
        decided_us,
        reserved: None,
    })
}

pub(crate) fn answered(step: u32, attempt: u32, answer: Answer) -> Event {
    checked(step, attempt, answer, Vec::new())
}

pub(crate) fn checked(step: u32, attempt: u32, answer: Answer, problems: Vec<Problem>) -> Event {
    Event::ModelCallFinished(ModelCallFinished {
        step,
        attempt,
        finish_reason: finish_reason(&answer),
        answer,
        usage: USAGE,
        cost_usd: None,
        timing: TIMING,
        notes: CallNotes::default(),
        problems,
        verify: false,
        score: None,
        checks: Vec::new(),
    })
}

/// An answer that the user's function is asked about.
pub(crate) fn unverified(step: u32, attempt: u32, answer: Answer) -> Event {
    match answered(step, attempt, answer) {
        Event::ModelCallFinished(finished) => {
            Event::ModelCallFinished(ModelCallFinished { verify: true, ..finished })
        }
        other => other,
    }
}

pub(crate) fn model_failed(
    step: u32,
    attempt: u32,
    error: Failure,
    retry_at_us: Option<i64>,
) -> Event {
    Event::ModelCallFailed(ModelCallFailed {
        step,
        attempt,
        error,
        retry_at_us,
        retry_after_ms: None,
        streamed_chars: 0,
        charged: None,
    })
}

pub(crate) fn summarised(step: u32, text: &str) -> Event {
    let (text, cost_usd) = (text.to_owned(), None);
    Event::SummaryFinished(SummaryFinished { step, text, usage: USAGE, cost_usd, timing: TIMING })
}

pub(crate) fn no_summary(step: u32, error: Failure) -> Event {
    Event::SummaryFailed(SummaryFailed { step, error, charged: None })
}

pub(crate) fn verified(step: u32) -> Event {
    Event::AnswerVerified(AnswerVerified { step })
}

pub(crate) fn rejected(step: u32, problems: Vec<Problem>, action: RejectAction) -> Event {
    let (larger_left, draft) = (false, false);
    Event::AnswerRejected(AnswerRejected { step, problems, action, larger_left, draft })
}

pub(crate) fn check_started(step: u32, check: Check, model: &str, calls: u32) -> Event {
    Event::CheckStarted(CheckStarted {
        step,
        check,
        model: model.to_owned(),
        calls,
        reserved: None,
    })
}

/// The end of a check with this score.
pub(crate) fn found(step: u32, check: Check, score: Option<f64>) -> Event {
    let passed = score.map(|score| score >= 0.5);
    let reason = if passed == Some(false) { "it is wrong".to_owned() } else { String::new() };
    Event::CheckFinished(CheckFinished {
        step,
        check,
        passed,
        score,
        p_ok: None,
        reason,
        usage: USAGE,
        cost_usd: None,
        duration_us: 90,
        error: None,
        charged: None,
    })
}

/// The end of a check whose model failed.
pub(crate) fn not_found(step: u32, check: Check) -> Event {
    match found(step, check, None) {
        Event::CheckFinished(finished) => Event::CheckFinished(CheckFinished {
            error: Some(crate::fact::server_error()),
            usage: Usage::default(),
            ..finished
        }),
        other => other,
    }
}

/// An answer that is sent back to a model that is not the largest.
pub(crate) fn sent_back(step: u32, problems: Vec<Problem>) -> Event {
    match rejected(step, problems, RejectAction::Repair) {
        Event::AnswerRejected(rejected) => {
            Event::AnswerRejected(AnswerRejected { larger_left: true, ..rejected })
        }
        other => other,
    }
}

/// The event without what routing adds to explain itself; `routing.rs` looks at that.
pub(crate) fn plain(event: Event) -> Event {
    match event {
        Event::RouteDecided(decided) => {
            Event::RouteDecided(RouteDecided { decision: None, ..decided })
        }
        Event::ModelCallStarted(started) => {
            Event::ModelCallStarted(ModelCallStarted { class: None, decided_us: None, ..started })
        }
        Event::ModelCallFinished(finished) => {
            Event::ModelCallFinished(ModelCallFinished { score: None, ..finished })
        }
        other => other,
    }
}

/// The start of a call as the model asked for it: without arguments.
pub(crate) fn tool_started(call: u64, attempt: u32, name: &str) -> Event {
    tool_started_with(call, attempt, name, "{}")
}

pub(crate) fn tool_started_with(call: u64, attempt: u32, name: &str, arguments: &str) -> Event {
    Event::ToolCallStarted(ToolCallStarted {
        call: CallIndex(call),
        attempt,
        name: name.to_owned(),
        effect_id: EffectId::derive(&session_id(), CallIndex(call), name, arguments),
    })
}

/// The id of a request for an approval in the session `s-1`.
pub(crate) fn approval(call: u64, epoch: u64, store: &str) -> ApprovalId {
    ApprovalId::derive(&session_id(), Epoch(epoch), store, CallIndex(call))
}

pub(crate) fn approval_requested(call: u64, approval: &ApprovalId) -> Event {
    let approval = approval.clone();
    Event::ApprovalRequested(ApprovalRequested { call: CallIndex(call), approval })
}

pub(crate) fn approval_decided(
    call: u64,
    approval: &ApprovalId,
    decision: ApprovalDecision,
) -> Event {
    let (approval, by) = (approval.clone(), Some("ann".to_owned()));
    Event::ApprovalDecided(ApprovalDecided { call: CallIndex(call), approval, decision, by })
}

pub(crate) fn effect_unknown(call: u64, attempt: u32) -> Event {
    Event::EffectUnknown(EffectUnknown { call: CallIndex(call), attempt })
}

pub(crate) fn effect_resolved(call: u64, outcome: EffectOutcome) -> Event {
    let by = Some("ann".to_owned());
    Event::EffectResolved(EffectResolved { call: CallIndex(call), outcome, by })
}

pub(crate) fn tool_finished(call: u64, text: &str) -> Event {
    Event::ToolCallFinished(ToolCallFinished {
        call: CallIndex(call),
        text: text.to_owned(),
        duration_us: 90,
    })
}

pub(crate) fn tool_failed(
    call: u64,
    attempt: u32,
    error: Failure,
    retry_at_us: Option<i64>,
) -> Event {
    Event::ToolCallFailed(ToolCallFailed { call: CallIndex(call), attempt, error, retry_at_us })
}

/// A call that was given up because its turn ended.
pub(crate) fn tool_stopped(call: u64, attempt: u32, name: &str, why: &str) -> Event {
    let message = format!("tool {name:?} was stopped: {why}");
    tool_failed(call, attempt, Failure::new(ErrorCode::CANCELLED, message), None)
}

/// What the model reads of a call whose turn ended before anybody found out.
pub(crate) fn outcome_unknown(name: &str) -> Failure {
    let message = format!(
        "tool {name:?} was running when the process ended; whether it took effect is not known, \
         and it was not run again"
    );
    Failure::new(ErrorCode::TOOL_OUTCOME_UNKNOWN, message)
        .with_hint("find out whether it took effect before you call it again")
}

pub(crate) fn late_text(call: u64, attempt: u32, text: &str) -> Event {
    Event::ToolCallLate(ToolCallLate {
        call: CallIndex(call),
        attempt,
        text: Some(text.to_owned()),
        error: None,
    })
}

pub(crate) fn late_error(call: u64, attempt: u32, error: Failure) -> Event {
    Event::ToolCallLate(ToolCallLate {
        call: CallIndex(call),
        attempt,
        text: None,
        error: Some(error),
    })
}

pub(crate) fn cancel_requested() -> Event {
    Event::CancelRequested { reason: "enough".to_owned() }
}

pub(crate) fn cancelled() -> Event {
    Event::SessionCancelled { reason: "enough".to_owned() }
}

pub(crate) fn limit_reached(limit: &str, value: u64, allowed: u64) -> Event {
    Event::LimitReached { limit: limit.to_owned(), value, allowed }
}

/// The end of a turn that took the default hour.
pub(crate) fn out_of_time() -> Event {
    let message = "the turn took longer than its limit of 3600 s";
    failed(Failure::new(ErrorCode::LIMIT_TIME, message).with_hint("raise Limits.turn_s_max"))
}

pub(crate) fn epoch_taken() -> Event {
    taken(2, STORE)
}

pub(crate) fn taken(epoch: u64, store: &str) -> Event {
    Event::EpochTaken(EpochTaken {
        epoch: Epoch(epoch),
        fingerprint: fingerprint(),
        store: store.to_owned(),
        held: false,
    })
}

pub(crate) fn held(epoch: u64, store: &str) -> Event {
    Event::EpochTaken(EpochTaken {
        epoch: Epoch(epoch),
        fingerprint: fingerprint(),
        store: store.to_owned(),
        held: true,
    })
}

pub(crate) fn finished(step: u32) -> Event {
    Event::SessionFinished(SessionFinished { step })
}

pub(crate) fn failed(error: Failure) -> Event {
    Event::SessionFailed { error }
}

/// The model call that was lost with its process.
pub(crate) fn process_lost(step: u32, attempt: u32) -> Event {
    let message = "the process ended while the model was answering";
    let error = Failure::new(ErrorCode::PROCESS_LOST, message);
    model_failed(step, attempt, error, Some(crate::support::NOW.at_us))
}
