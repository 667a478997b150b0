//! Reads events of older formats: each step rewrites the JSON of one version into that of the next.
//!
//! Invariant: [`STEPS`] has one step for every version before [`SCHEMA_VERSION`], and a step that
//! was released never changes, so that every log ever written reads the same for ever. To change
//! the format: raise `SCHEMA_VERSION`, add a step here, add a fixture in `tests/fixtures/`.

use serde_json::{Map, Value};

use crate::event::{Event, SCHEMA_VERSION};

/// Rewrites the fields of one event, `kind` included, from one version to the next.
pub type Upcast = fn(&mut Map<String, Value>);

/// The steps, that from version 1 to 2 first; none where what the older version wrote means the
/// same in the newer one.
///
/// - 1 to 2: kinds were added (forks, approvals, unknown effects), and fields that may be left out.
/// - 2 to 3: kinds were added (budgets, compaction, checks by models, restarts), and such fields.
pub const STEPS: &[Option<Upcast>] = &[None, None];

const _: () = assert!(STEPS.len() as u32 + 1 == SCHEMA_VERSION);

/// Reads a stored event of a version.
pub(crate) fn read(json: &str, schema: u32) -> Result<Event, serde_json::Error> {
    read_with(STEPS, json, schema)
}

/// Reads a stored event of a version through these steps, the one from version 1 to 2 first.
///
/// # Errors
/// The JSON error if the text is no object, or a known kind has fields of the wrong type after the
/// last step.
pub fn read_with(
    steps: &[Option<Upcast>],
    json: &str,
    schema: u32,
) -> Result<Event, serde_json::Error> {
    let done = usize::try_from(schema).unwrap_or(usize::MAX).saturating_sub(1);
    let mut due = steps.iter().skip(done).flatten().peekable();
    if due.peek().is_none() {
        return serde_json::from_str(json);
    }
    let mut fields: Map<String, Value> = serde_json::from_str(json)?;
    for step in due {
        step(&mut fields);
    }
    serde_json::from_value(Value::Object(fields))
}
