//! A journal read from the side: for `mainspring show` and `sessions`, beside a running engine or
//! without one.

use std::sync::Arc;

use mainspring_journal::{Access, Journal, JournalOptions};
use mainspring_session::{BlobHash, Seq};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::convert;
use crate::engine::{query, session_id};

/// A journal, opened to read only. Its calls block, without holding the interpreter.
#[pyclass(frozen, module = "mainspring._native")]
pub(crate) struct JournalReader(Arc<dyn Journal>);

#[pymethods]
impl JournalReader {
    #[new]
    fn new(py: Python<'_>, store: &str) -> PyResult<Self> {
        let options = JournalOptions { access: Access::ReadOnly, ..JournalOptions::default() };
        py.detach(|| mainspring_journal::open(store, options))
            .map(Self)
            .map_err(|error| convert::raise(error.failure()))
    }

    /// Session heads, the newest first.
    fn sessions<'py>(
        &self,
        py: Python<'py>,
        status: Option<&str>,
        limit: u32,
        before: Option<&str>,
    ) -> PyResult<Bound<'py, PyList>> {
        let query = query(status, limit, before).map_err(convert::raise)?;
        let heads = py
            .detach(|| self.0.sessions(&query))
            .map_err(|error| convert::raise(error.failure()))?;
        let list = PyList::empty(py);
        for head in &heads {
            list.append(convert::head(py, head)?)?;
        }
        Ok(list)
    }

    /// A session's head, or None.
    fn head<'py>(&self, py: Python<'py>, session: &str) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let session = session_id(session).map_err(convert::raise)?;
        let head =
            py.detach(|| self.0.head(&session)).map_err(|error| convert::raise(error.failure()))?;
        head.map(|head| convert::head(py, &head)).transpose()
    }

    /// A session's records from `seq` on.
    fn load<'py>(&self, py: Python<'py>, session: &str, seq: u64) -> PyResult<Bound<'py, PyList>> {
        let session = session_id(session).map_err(convert::raise)?;
        let records = py
            .detach(|| self.0.load(&session, Seq(seq)))
            .map_err(|error| convert::raise(error.failure()))?;
        let list = PyList::empty(py);
        for record in &records {
            list.append(convert::record(py, record)?)?;
        }
        Ok(list)
    }

    /// What waits for decisions, in one session or in all that wait for nothing else.
    fn pending<'py>(
        &self,
        py: Python<'py>,
        session: Option<&str>,
        limit: u32,
    ) -> PyResult<Bound<'py, PyList>> {
        let session = session.map(session_id).transpose().map_err(convert::raise)?;
        let found = py
            .detach(|| mainspring_engine::pending(self.0.as_ref(), session.as_ref(), limit))
            .map_err(convert::raise)?;
        let list = PyList::empty(py);
        for pending in &found {
            list.append(convert::pending(py, pending)?)?;
        }
        Ok(list)
    }

    /// How a replay of the session ended.
    fn replay<'py>(&self, py: Python<'py>, session: &str) -> PyResult<Bound<'py, PyTuple>> {
        let session = session_id(session).map_err(convert::raise)?;
        let replay = py
            .detach(|| mainspring_engine::replay(self.0.as_ref(), &session))
            .map_err(convert::raise)?;
        convert::replay(py, &replay)
    }

    /// The state as of before a position (None: now), as JSON.
    fn state_at(&self, py: Python<'_>, session: &str, until: Option<u64>) -> PyResult<String> {
        let session = session_id(session).map_err(convert::raise)?;
        py.detach(|| mainspring_engine::state_json(self.0.as_ref(), &session, until.map(Seq)))
            .map_err(convert::raise)
    }

    /// A blob's bytes, or None.
    fn blob<'py>(&self, py: Python<'py>, hash: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let hash: BlobHash = serde_json::from_value(hash.into())
            .expect("any text is a hash, though perhaps of nothing");
        let blob =
            py.detach(|| self.0.blob(&hash)).map_err(|error| convert::raise(error.failure()))?;
        Ok(blob.map(|bytes| PyBytes::new(py, &bytes)))
    }

    /// Lets go of the file.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.close()).map_err(|error| convert::raise(error.failure()))
    }
}
