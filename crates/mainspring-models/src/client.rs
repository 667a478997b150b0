//! One model call: admitted, made (`call.rs`), perhaps twice (`race.rs`), and accounted for.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainspring_session::{
    Answer, CallNotes, ErrorCode, Failure, FinishReason, ModelSpec, Problem, Timing, Usage,
};
use mainspring_wire::{CallIds, Codec, Delta, HttpFailure};
use tokio::time::Instant;

use crate::adapter::ModelHost;
use crate::admission::{Admission, AdmissionLimits, ChannelReport, Ended, Permit, Readiness};
use crate::budget::SecondCall;
use crate::call::{Call, Target};
use crate::endpoint_set::EndpointSet;
use crate::limits::TransportLimits;
use crate::pool::Pools;
use crate::race;

/// Calls models; clones share their connections. To be used inside one tokio runtime, since its
/// connections live there.
#[derive(Clone)]
pub struct ModelClient {
    pools: Arc<Pools>,
    admission: Arc<Admission>,
    limits: TransportLimits,
    host: Arc<dyn ModelHost>,
}

impl std::fmt::Debug for ModelClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelClient").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// One call.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// Where to: one of these, chosen when the call is admitted.
    pub endpoints: Arc<EndpointSet>,
    /// How to read the answer; it also made the body.
    pub codec: Arc<Codec>,
    /// The request body.
    pub body: Bytes,
    /// How to name calls without an id.
    pub ids: CallIds,
    /// Milliseconds to connect.
    pub connect_ms_max: u64,
    /// Milliseconds from the request to the first token, or to the response without streaming.
    pub first_token_ms_max: u64,
    /// Milliseconds from the request to the end of the answer.
    pub total_ms_max: u64,
    /// Whose call it is: waiting calls of different tenants take turns. Empty: of nobody in
    /// particular.
    pub tenant: Arc<str>,
    /// Calls of one affinity, such as the steps of a session, go to one endpoint, so that the
    /// provider's prompt cache serves them. 0: to any.
    pub affinity: u64,
    /// When the answer is of no use any more; none: never. A call that cannot have its turn by then
    /// fails at once.
    pub deadline: Option<Instant>,
    /// Which attempt at the same call it is, from 1: only so many may be repetitions.
    pub attempt: u32,
    /// Who pays for a second call beside this one; none: nobody keeps an account.
    pub second: Option<Arc<SecondCall>>,
}

impl ModelRequest {
    /// A first attempt of nobody in particular, with the deadlines of the model's spec.
    #[must_use]
    pub fn new(
        model: &ModelSpec,
        endpoints: Arc<EndpointSet>,
        codec: Arc<Codec>,
        body: Bytes,
        ids: CallIds,
    ) -> Self {
        Self {
            endpoints,
            codec,
            body,
            ids,
            connect_ms_max: model.connect_ms_max,
            first_token_ms_max: model.first_token_ms_max,
            total_ms_max: model.total_ms_max,
            tenant: Arc::default(),
            affinity: 0,
            deadline: None,
            attempt: 1,
            second: None,
        }
    }
}

/// A model's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelReply {
    /// What it said.
    pub answer: Answer,
    /// Why it stopped.
    pub finish_reason: FinishReason,
    /// Tokens, as the provider counted them.
    pub usage: Usage,
    /// How long it took.
    pub timing: Timing,
    /// What else is known of the call.
    pub notes: CallNotes,
    /// What is wrong with the form of a constrained answer.
    pub problems: Vec<Problem>,
}

impl ModelClient {
    /// A client without connections, that shares its admission with nobody; the first call to a
    /// server makes a connection.
    ///
    /// # Errors
    /// `agent_invalid` if a limit is zero.
    pub fn new(limits: TransportLimits) -> Result<Self, Failure> {
        Self::with_admission(limits, Admission::new(AdmissionLimits::default())?)
    }

    /// A client of one of several threads, which share limits and health of the models.
    ///
    /// # Errors
    /// `agent_invalid` if a limit is zero.
    pub fn with_admission(
        limits: TransportLimits,
        admission: Arc<Admission>,
    ) -> Result<Self, Failure> {
        let TransportLimits { body_bytes_max, error_body_bytes_max, pools_max, .. } = limits;
        if body_bytes_max == 0 || error_body_bytes_max == 0 || pools_max == 0 {
            return Err(Failure::new(
                ErrorCode::AGENT_INVALID,
                "a transport limit is 0, at least 1 is needed",
            ));
        }
        Ok(Self { pools: Arc::new(Pools::new(limits)), admission, limits, host: Arc::new(()) })
    }

    /// The same client, for models that are functions of this host too.
    #[must_use]
    pub fn with_host(mut self, host: Arc<dyn ModelHost>) -> Self {
        self.host = host;
        self
    }

    /// Waits for its turn, makes one call, and reports pieces of a streamed answer as they arrive.
    ///
    /// A call whose first token is late may be made a second time, at another endpoint if there is
    /// one; the first to write is the answer, and the other is cancelled. Dropping the future ends
    /// the call and closes its connection.
    ///
    /// # Errors
    /// The failure, with the wait that the server asked for: `model_connect`, `model_timeout`,
    /// `model_interrupted`, `model_bad_response`, or what the server's status means;
    /// `model_unavailable` and `model_overloaded` where it was not called at all.
    pub async fn call(
        &self,
        request: ModelRequest,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<ModelReply, HttpFailure> {
        let permit = self.admission.admit(&request).await?;
        if request.endpoints.hedges()
            && let Some(late) = self.admission.late_after(&permit)
        {
            return Box::pin(race::run(self, &request, (permit, late), on_delta)).await;
        }
        let result = self.attempt(&request, &permit, Listener { on_delta, on_first: None }).await;
        settle(permit, result)
    }

    /// How soon a model could take a call. Takes about a microsecond.
    #[must_use]
    pub fn readiness(&self, endpoints: &EndpointSet) -> Readiness {
        self.admission.readiness(endpoints)
    }

    /// What is known of every key of every model.
    #[must_use]
    pub fn report(&self) -> Vec<ChannelReport> {
        self.admission.report()
    }

    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Makes one call with a permit.
    pub(crate) async fn attempt(
        &self,
        request: &ModelRequest,
        permit: &Permit,
        listener: Listener<'_>,
    ) -> Result<ModelReply, Failed> {
        let started = Instant::now();
        let first_ms_max = request.first_token_ms_max.min(request.total_ms_max);
        let timer = pin!(tokio::time::sleep(Duration::from_millis(first_ms_max)));
        let endpoint = &request.endpoints.members[permit.endpoint_idx()].endpoint;
        let target = Target { request, endpoint };
        let limits = &self.limits;
        let Listener { on_delta, on_first } = listener;
        let mut call =
            Call { target, limits, started, timer, permit, on_first, is_overload: false };
        let result = call.run(&self.pools, &self.host, on_delta).await;
        result.map_err(|HttpFailure { failure, retry_after_ms }| Failed {
            failure: endpoint.without_key(failure),
            retry_after_ms,
            is_overload: call.is_overload,
        })
    }
}

/// Who hears of an answer while it is written.
pub(crate) struct Listener<'a> {
    pub(crate) on_delta: &'a mut dyn FnMut(Delta<'_>),
    /// Told when the model has begun to write.
    pub(crate) on_first: Option<&'a dyn Fn()>,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    failure: Failure,
    retry_after_ms: Option<u64>,
    is_overload: bool,
}

/// Accounts for a call, and notes how it got its turn.
pub(crate) fn settle(
    permit: Permit,
    result: Result<ModelReply, Failed>,
) -> Result<ModelReply, HttpFailure> {
    match result {
        Ok(mut reply) => {
            reply.notes.queued_us = u64::try_from(permit.queued().as_micros()).unwrap_or(0);
            reply.notes.endpoint = u32::try_from(permit.endpoint_idx()).unwrap_or(0);
            let first_token_us = reply.timing.first_token_us.unwrap_or(reply.timing.total_us);
            permit.end(&Ended::Answered { usage: reply.usage, first_token_us });
            Ok(reply)
        }
        Err(Failed { mut failure, mut retry_after_ms, is_overload }) => {
            let has_other = permit.fail(&failure, retry_after_ms, is_overload);
            if has_other && is_of_the_key(&failure.code) {
                // The next attempt goes to another key, which need not wait for this one.
                failure.retryable = true;
                retry_after_ms = None;
            }
            Err(HttpFailure { failure, retry_after_ms })
        }
    }
}

/// Whether a failure says something of the key and nothing of the request.
fn is_of_the_key(code: &ErrorCode) -> bool {
    [ErrorCode::MODEL_AUTH, ErrorCode::MODEL_NOT_FOUND, ErrorCode::MODEL_RATE_LIMITED]
        .contains(code)
}
