//! What a text looks like as numbers: hashed words and pairs of words, and ten counts.
//!
//! Training and serving both come here, so that they cannot disagree. Nothing is allocated: the
//! grams lie in a table of fixed size inside the value.

/// Grams are hashed into two to this power buckets.
pub const FEATURE_BITS: u32 = 16;
/// How many surface features there are.
pub const SURFACE_COUNT: usize = 10;
/// The surface features in their order; counts are `ln(1 + count)`.
pub const SURFACE_NAMES: [&str; SURFACE_COUNT] = [
    "bytes",
    "digits",
    "numbers",
    "newlines",
    "percent_signs",
    "slashes",
    "maths_signs",
    "negations",
    "question_marks",
    "capitals_share",
];

/// Of a longer text only the beginning and the end are looked at, half of this each.
const TEXT_BYTES_MAX: usize = 4096;
/// Distinct grams that a text can have; further ones are left out.
const GRAMS_MAX: usize = 2048;
const SLOTS: usize = 2 * GRAMS_MAX;
const COUNT_MAX: u32 = 0xffff;

/// What a text looks like as numbers.
#[derive(Debug, Clone)]
pub struct Features {
    surface: [f32; SURFACE_COUNT],
    /// Open addressing: the bucket in the upper half, its count in the lower; 0 is free.
    slots: [u32; SLOTS],
    /// The slots in use, in the order in which they were taken.
    used: [u16; GRAMS_MAX],
    used_count: usize,
}

impl Features {
    /// Looks at a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut features = Self {
            surface: [0.0; SURFACE_COUNT],
            slots: [0; SLOTS],
            used: [0; GRAMS_MAX],
            used_count: 0,
        };
        let bytes = text.as_bytes();
        let mut scan = Scan::default();
        if bytes.len() <= TEXT_BYTES_MAX {
            scan.run(bytes, &mut features);
        } else {
            let (head, tail) =
                (&bytes[..TEXT_BYTES_MAX / 2], &bytes[bytes.len() - TEXT_BYTES_MAX / 2..]);
            scan.run(head, &mut features);
            scan.run(tail, &mut features);
        }
        features.surface = scan.surface(bytes.len());
        features
    }

    /// The ten surface features, in the order of [`SURFACE_NAMES`].
    #[must_use]
    pub fn surface(&self) -> &[f32; SURFACE_COUNT] {
        &self.surface
    }

    /// The text's distinct grams: bucket and count.
    pub fn grams(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        self.used[..self.used_count].iter().map(|slot| {
            let entry = self.slots[usize::from(*slot)];
            ((entry >> 16) as u16, entry & COUNT_MAX)
        })
    }

    /// Whether the text has a gram of that bucket.
    pub(crate) fn has(&self, bucket: u16) -> bool {
        self.slots[self.slot(bucket)] != 0
    }

    /// Where a bucket is, or would be. The table is never more than half full, so this ends.
    fn slot(&self, bucket: u16) -> usize {
        let mut slot = usize::from(bucket) % SLOTS;
        while self.slots[slot] != 0 && (self.slots[slot] >> 16) as u16 != bucket {
            slot = (slot + 1) % SLOTS;
        }
        slot
    }

    fn add(&mut self, bucket: u16) {
        let slot = self.slot(bucket);
        let entry = self.slots[slot];
        if entry != 0 {
            self.slots[slot] = entry + u32::from(entry & COUNT_MAX < COUNT_MAX);
        } else if self.used_count < GRAMS_MAX {
            self.slots[slot] = (u32::from(bucket) << 16) | 1;
            self.used[self.used_count] = slot as u16;
            self.used_count += 1;
        }
    }
}

// Kinds of bytes, as positions in `Scan::counts`.
const OTHER: u8 = 0;
const DIGIT: u8 = 1;
const UPPER: u8 = 2;
const LOWER: u8 = 3;
const NEWLINE: u8 = 4;
const PERCENT: u8 = 5;
const SLASH: u8 = 6;
const MATHS: u8 = 7;
const QUESTION: u8 = 8;
/// A byte of a character beyond ASCII: part of a word.
const BEYOND: u8 = 9;
const KINDS: usize = 10;

const KIND: [u8; 256] = {
    let mut kinds = [OTHER; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'0'..=b'9' => DIGIT,
            b'A'..=b'Z' => UPPER,
            b'a'..=b'z' => LOWER,
            b'\n' => NEWLINE,
            b'%' => PERCENT,
            b'/' => SLASH,
            b'+' | b'-' | b'*' | b'=' | b'<' | b'>' | b'^' | b'\\' => MATHS,
            b'?' => QUESTION,
            0x80.. => BEYOND,
            _ => OTHER,
        };
        byte += 1;
    }
    kinds
};

/// A word of at most 8 bytes as [`Scan`] holds it.
const fn packed(word: &[u8]) -> u64 {
    let mut value = 0;
    let mut idx = 0;
    while idx < word.len() {
        value = (value << 8) | word[idx] as u64;
        idx += 1;
    }
    value
}

const NEGATIONS: [u64; 10] = [
    packed(b"not"),
    packed(b"no"),
    packed(b"never"),
    packed(b"none"),
    packed(b"nor"),
    packed(b"neither"),
    packed(b"except"),
    packed(b"without"),
    packed(b"cannot"),
    packed(b"false"),
];

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// One pass over the bytes.
#[derive(Default)]
struct Scan {
    counts: [u32; KINDS],
    numbers: u32,
    negations: u32,
    /// The word so far: hash of its full eights, the bytes since, its length.
    hash: u64,
    bytes: u64,
    length: usize,
    all_digits: bool,
    /// Hash of the word before; 0 at the beginning.
    previous: u64,
}

impl Scan {
    fn run(&mut self, bytes: &[u8], features: &mut Features) {
        for byte in bytes {
            let kind = KIND[usize::from(*byte)];
            self.counts[usize::from(kind)] += 1;
            if matches!(kind, DIGIT | UPPER | LOWER | BEYOND) {
                self.take(*byte, kind);
            } else if self.length > 0 {
                self.end_word(features);
            }
        }
        if self.length > 0 {
            self.end_word(features);
        }
    }

    fn take(&mut self, byte: u8, kind: u8) {
        self.all_digits = (self.length == 0 || self.all_digits) && kind == DIGIT;
        // Sets letters to lower case and leaves digits alone.
        self.bytes = (self.bytes << 8) | u64::from(byte | 0x20);
        self.length += 1;
        if self.length.is_multiple_of(8) {
            self.hash = (self.hash ^ self.bytes).wrapping_mul(MULTIPLIER);
        }
    }

    fn end_word(&mut self, features: &mut Features) {
        self.numbers += u32::from(self.all_digits);
        if self.length < 8 && NEGATIONS.contains(&self.bytes) {
            self.negations += 1;
        }
        let rest = self.bytes ^ ((self.length as u64) << 56);
        let word = mixed(self.hash ^ rest);
        features.add((word >> 48) as u16);
        if self.previous != 0 {
            features.add((mixed(self.previous.rotate_left(17) ^ word) >> 48) as u16);
        }
        self.previous = word;
        (self.hash, self.bytes, self.length) = (0, 0, 0);
    }

    fn surface(&self, length: usize) -> [f32; SURFACE_COUNT] {
        let logged = |count: f64| count.ln_1p() as f32;
        let of = |kind: u8| logged(f64::from(self.counts[usize::from(kind)]));
        let (upper, lower) = (self.counts[usize::from(UPPER)], self.counts[usize::from(LOWER)]);
        [
            logged(length as f64),
            of(DIGIT),
            logged(f64::from(self.numbers)),
            of(NEWLINE),
            of(PERCENT),
            of(SLASH),
            of(MATHS),
            logged(f64::from(self.negations)),
            of(QUESTION),
            (f64::from(upper) / f64::from((upper + lower).max(1))) as f32,
        ]
    }
}

/// Spreads a hash over all its bits; never 0.
fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 32)).wrapping_mul(MULTIPLIER);
    (value ^ (value >> 29)).wrapping_mul(MULTIPLIER) | 1
}
