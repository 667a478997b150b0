//! The boundary to Python: converts, and decides nothing.
//!
//! Invariants: no engine thread ever attaches to the interpreter. What the engine wants from
//! Python waits in a queue (`bridge.rs`) that Python's own threads drain; what Python wants from
//! the engine is answered through the same queue. Nothing here holds a lock while it runs Python.
//!
//! Start reading at `bridge.rs`, then `engine.rs`.

mod bridge;
mod convert;
mod engine;
mod gateway;
mod models;
mod payment;
mod reader;
mod route;

use pyo3::prelude::*;

/// The native part of `mainspring`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::engine::NativeEngine;
    #[pymodule_export]
    use super::engine::error_catalogue;
    #[pymodule_export]
    use super::gateway::NativeGateway;
    #[pymodule_export]
    use super::models::NativeModels;
    #[pymodule_export]
    use super::reader::JournalReader;
    #[pymodule_export]
    use super::route::{
        RouteWeights, route_choose, route_features, route_names, route_score, route_signals,
    };

    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        module.add("PROFILE", profile)
    }
}
