// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// @title The mountain range and the jobs' tree, written the slow and obvious way
/// @notice From lists and by recursion, sharing no code with the contract: what the tests compare
/// it with, and what relayer and auditor compute from `BatchConfirmed` logs.
library Naive {
    /// @dev The root over `leaves[start .. start + size)`, where `size` is a power of two.
    function perfectRoot(bytes32[] memory leaves, uint256 start, uint256 size)
        internal
        pure
        returns (bytes32)
    {
        if (size == 1) return leaves[start];
        uint256 half = size / 2;
        return keccak256(
            bytes.concat(perfectRoot(leaves, start, half), perfectRoot(leaves, start + half, half))
        );
    }

    /// @dev The tree `index` stands in: trees are taken from the left, each the largest that fits.
    function treeOf(uint256 count, uint256 index)
        internal
        pure
        returns (uint256 start, uint256 size)
    {
        while (true) {
            size = 1;
            while (size * 2 <= count - start) size *= 2;
            if (index < start + size) return (start, size);
            start += size;
        }
    }

    /// @dev The siblings of leaf `index` up to its peak, lowest first.
    function path(bytes32[] memory leaves, uint256 index)
        internal
        pure
        returns (bytes32[] memory siblings)
    {
        (uint256 start, uint256 size) = treeOf(leaves.length, index);
        siblings = new bytes32[](heightOf(size));
        // Descend from the peak: the half without the leaf is the sibling at that level.
        for (uint256 level = siblings.length; level > 0; --level) {
            size /= 2;
            bool isRight = index >= start + size;
            siblings[level - 1] = perfectRoot(leaves, isRight ? start : start + size, size);
            if (isRight) start += size;
        }
    }

    /// @dev The exponent of a power of two.
    function heightOf(uint256 size) internal pure returns (uint256 height) {
        while (size > 1) {
            size /= 2;
            ++height;
        }
    }

    /// @dev The array of StandardMerkleTree: root first, sorted leaves last and in reverse.
    function jobTree(bytes32[] memory leafHashes) internal pure returns (bytes32[] memory tree) {
        uint256 count = leafHashes.length;
        bytes32[] memory sorted = sort(leafHashes);
        tree = new bytes32[](2 * count - 1);
        for (uint256 i = 0; i < count; ++i) {
            tree[2 * count - 2 - i] = sorted[i];
        }
        for (uint256 i = count - 1; i > 0; --i) {
            (bytes32 left, bytes32 right) = (tree[2 * i - 1], tree[2 * i]);
            if (left > right) (left, right) = (right, left);
            tree[i - 1] = keccak256(bytes.concat(left, right));
        }
    }

    /// @dev The siblings of `leafHash` up to the root of a {jobTree}.
    function jobPath(bytes32[] memory tree, bytes32 leafHash)
        internal
        pure
        returns (bytes32[] memory siblings)
    {
        uint256 slot = tree.length - 1;
        while (tree[slot] != leafHash) --slot;
        uint256 depth = 0;
        for (uint256 node = slot; node > 0; node = (node - 1) / 2) {
            ++depth;
        }
        siblings = new bytes32[](depth);
        for (uint256 i = 0; i < depth; ++i) {
            siblings[i] = tree[slot % 2 == 1 ? slot + 1 : slot - 1];
            slot = (slot - 1) / 2;
        }
    }

    /// @dev A sorted copy, by insertion.
    function sort(bytes32[] memory values) internal pure returns (bytes32[] memory sorted) {
        sorted = new bytes32[](values.length);
        for (uint256 i = 0; i < values.length; ++i) {
            uint256 place = i;
            for (; place > 0 && sorted[place - 1] > values[i]; --place) {
                sorted[place] = sorted[place - 1];
            }
            sorted[place] = values[i];
        }
    }
}
