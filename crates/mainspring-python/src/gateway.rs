//! The gateway, as `mainspring gateway` starts and stops it.

use std::time::Duration;

use mainspring_server::{Gateway, GatewayConfig};
use mainspring_session::{ErrorCode, Failure};
use pyo3::prelude::*;

use crate::convert;

/// A running gateway; its threads serve until `close`.
#[pyclass(frozen, module = "mainspring._native")]
pub(crate) struct NativeGateway {
    gateway: Gateway,
}

#[pymethods]
impl NativeGateway {
    #[new]
    fn new(py: Python<'_>, config: &[u8]) -> PyResult<Self> {
        let opened = py.detach(|| {
            let config: GatewayConfig = serde_json::from_slice(config).map_err(|error| {
                let message = format!("the gateway's configuration cannot be used: {error}");
                Failure::new(ErrorCode::AGENT_INVALID, message)
            })?;
            Gateway::open(&config)
        });
        opened.map(|gateway| Self { gateway }).map_err(convert::raise)
    }

    /// Where it listens: `127.0.0.1:8080`.
    fn address(&self) -> String {
        self.gateway.address().to_string()
    }

    /// Lets answers under way be sent, and ends; False if some were cut off.
    fn close(&self, py: Python<'_>, within_ms: u64) -> bool {
        py.detach(|| self.gateway.close(Duration::from_millis(within_ms)))
    }
}
