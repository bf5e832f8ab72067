//! Places on a device and the units they are tracked in.

/// A range of bytes on the device, aligned to 512. Never empty but for operations without a range (FLUSH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Range {
    /// The range of an operation that has none.
    pub const EMPTY: Range = Range { start: 0, len: 0 };

    /// A range of `len` bytes from `start`.
    pub const fn new(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    /// The first byte behind the range.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether the two ranges share a byte.
    pub const fn overlaps(self, other: Range) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether every byte of `other` is in this range.
    pub const fn contains(self, other: Range) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

/// The smallest unit that the kernel addresses, in bytes.
pub const SECTOR: u64 = 512;

/// The size of a device and the units in which it is tracked. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device; a multiple of the logical block size, not necessarily of grain or extent.
    pub size: u64,
    /// Logical block size of the device, 512 or 4096: no request is smaller or less aligned.
    pub block: u32,
    /// The unit of dirty tracking: a power of two.
    pub grain: u32,
    /// The unit of signatures and of copying: a power of two, at least a grain.
    pub extent: u32,
}

impl Geometry {
    /// Grain of a device created without another choice.
    pub const GRAIN: u32 = 64 << 10;
    /// Extent of a device created without another choice.
    pub const EXTENT: u32 = 1 << 20;

    /// The default units for a device of `size` bytes and logical blocks of `block` bytes.
    pub const fn new(size: u64, block: u32) -> Geometry {
        Geometry {
            size,
            block,
            grain: Geometry::GRAIN,
            extent: Geometry::EXTENT,
        }
    }

    /// The whole device.
    pub const fn whole(&self) -> Range {
        Range::new(0, self.size)
    }

    /// How many grains the device has; the last may be partial.
    pub const fn grains(&self) -> u64 {
        self.size.div_ceil(self.grain as u64)
    }

    /// How many extents the device has; the last may be partial.
    pub const fn extents(&self) -> u64 {
        self.size.div_ceil(self.extent as u64)
    }

    /// The grains that `range` touches, as first and one past the last.
    pub const fn grains_of(&self, range: Range) -> (u64, u64) {
        let grain = self.grain as u64;
        (range.start / grain, range.end().div_ceil(grain))
    }

    /// The bytes of `extent`; shorter for a partial last one.
    pub const fn extent_range(&self, extent: u64) -> Range {
        let start = extent * self.extent as u64;
        let rest = self.size - start;
        Range::new(
            start,
            if rest < self.extent as u64 {
                rest
            } else {
                self.extent as u64
            },
        )
    }
}
