//! The stored form of events: what version 1 writes, and what it reads of newer versions.

use mainspring_session::Event;
#[expect(unused_imports, reason = "filled in below")]
use mainspring_session::State;
