//! The stored form of one append: a block of events of one session. Takes blocks apart into
//! records and checks that they join without a gap.

use std::ops::Range;

use mainspring_session::{Epoch, Record, SCHEMA_VERSION, Seq, SessionId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::JournalError;

/// One append as stored.
pub(crate) struct Block {
    pub(crate) first_seq: u64,
    pub(crate) count: u32,
    pub(crate) epoch: Epoch,
    pub(crate) at_us: i64,
    /// Version of the event format.
    pub(crate) schema: u32,
    pub(crate) body: Vec<u8>,
}

impl Block {
    /// The position after its last event.
    pub(crate) fn end(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }
}

/// A block, and the position before which its events count: a fork shares a part of it, or a
/// reader wants no more.
pub(crate) type Piece<B> = (B, u64);

/// Turns blocks that follow on from each other, oldest first, into the records from `from` on.
pub(crate) fn records<'a>(
    session: &SessionId,
    pieces: impl IntoIterator<Item = Piece<&'a Block>>,
    from: Seq,
) -> Result<Vec<Record>, JournalError> {
    let mut records = Vec::new();
    let mut next_seq = None;
    for (block, until) in pieces {
        check_schema(session, block.schema)?;
        if next_seq.is_some_and(|next_seq| next_seq != block.first_seq) {
            return Err(JournalError::corrupt_session(session, Seq(block.first_seq), "gap"));
        }
        next_seq = Some(block.end().min(until));
        unpack(session, block, from.0..until, &mut records)?;
    }
    if from == Seq(0) {
        check_format(session, records.first())?;
    }
    Ok(records)
}

/// Refuses a block that a newer version wrote: it could be read, but not understood.
pub(crate) fn check_schema(session: &SessionId, schema: u32) -> Result<(), JournalError> {
    if schema > SCHEMA_VERSION {
        return Err(JournalError::newer_events(session, u64::from(schema), SCHEMA_VERSION));
    }
    Ok(())
}

fn unpack(
    session: &SessionId,
    block: &Block,
    wanted: Range<u64>,
    records: &mut Vec<Record>,
) -> Result<(), JournalError> {
    let corrupt = |seq, what: &str| JournalError::corrupt_session(session, Seq(seq), what);
    let body = std::str::from_utf8(&block.body)
        .map_err(|_| corrupt(block.first_seq, "stored text is not UTF-8"))?;
    let mut seq = block.first_seq;
    for line in body.split('\n') {
        if wanted.contains(&seq) {
            let json = RawValue::from_string(line.to_owned())
                .map_err(|error| corrupt(seq, &format!("stored text is not JSON: {error}")))?;
            let Block { at_us, epoch, schema, .. } = *block;
            records.push(Record { seq: Seq(seq), at_us, epoch, schema, json });
        }
        seq += 1;
    }
    if seq != block.end() {
        return Err(corrupt(seq, &format!("stored block should have {} events", block.count)));
    }
    Ok(())
}

/// Refuses a session whose first event says that a newer version wrote it: its events could be
/// read, but not understood.
fn check_format(session: &SessionId, first: Option<&Record>) -> Result<(), JournalError> {
    #[derive(Deserialize)]
    struct Format {
        #[serde(default)]
        schema: u64,
    }
    let Some(first) = first else { return Ok(()) };
    match serde_json::from_str::<Format>(first.json.get()) {
        Ok(format) if format.schema > u64::from(SCHEMA_VERSION) => {
            Err(JournalError::newer_events(session, format.schema, SCHEMA_VERSION))
        }
        Ok(_) => Ok(()),
        Err(error) => {
            let what = format!("event format version: {error}");
            Err(JournalError::corrupt_session(session, Seq(0), &what))
        }
    }
}
