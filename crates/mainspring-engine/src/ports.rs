//! What an engine needs of the world beside its journal and its host: the time, and models. Traits,
//! so that the same shard runs in a process and in a simulation.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::LocalBoxFuture;
use mainspring_models::{EndpointSet, ModelClient, ModelReply, ModelRequest, Readiness};
use mainspring_wire::{Delta, HttpFailure};

/// Tells the wall-clock time. Deadlines of running work use tokio's clock instead.
pub trait Clock: Send + Sync {
    /// Now, in microseconds since the epoch. May jump; nothing but waiting times hangs on it.
    fn now_us(&self) -> i64;
}

/// The clock of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }
}

/// Asks models.
pub trait Models: Send + Sync {
    /// Makes one call. Dropping the future cancels it.
    fn call<'a>(
        &'a self,
        request: ModelRequest,
        on_delta: &'a mut dyn FnMut(Delta<'_>),
    ) -> LocalBoxFuture<'a, Result<ModelReply, HttpFailure>>;

    /// How soon a model could take a call. Answers at once.
    fn readiness(&self, endpoints: &EndpointSet) -> Readiness;
}

impl Models for ModelClient {
    fn call<'a>(
        &'a self,
        request: ModelRequest,
        mut on_delta: &'a mut dyn FnMut(Delta<'_>),
    ) -> LocalBoxFuture<'a, Result<ModelReply, HttpFailure>> {
        Box::pin(async move { ModelClient::call(self, request, &mut on_delta).await })
    }

    fn readiness(&self, endpoints: &EndpointSet) -> Readiness {
        ModelClient::readiness(self, endpoints)
    }
}

pub(crate) type SharedModels = Arc<dyn Models>;
pub(crate) type SharedClock = Arc<dyn Clock>;
