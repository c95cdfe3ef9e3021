// What follows from a tree's shape: children, widths, and how many texts share a block.

/** Children by parent id, in the order given; those of null are at the top. */
export function family(nodes) {
  const children = new Map();
  for (const node of nodes) {
    if (!children.has(node.parent)) children.set(node.parent, []);
    children.get(node.parent).push(node);
  }
  return children;
}

/**
 * A width in pixels for each block, in proportion to its tokens, so that the longest path is
 * `room` wide. Very short ones get a few pixels all the same, or nobody would see them.
 */
export function fit(nodes, children, open, room) {
  const depths = new Map();
  let deepest = 1;
  const drawn = nodes.filter((node) => {
    const above = node.parent === null ? 0 : depths.get(node.parent);
    if (above === undefined || (node.parent !== null && !open(node.parent))) return false;
    depths.set(node.id, above + 1);
    deepest = Math.max(deepest, above + 1);
    return true;
  });
  const least = Math.min(8, room / deepest / 2);
  const longest = (scale) => {
    const ends = new Map([[null, 0]]);
    let most = 0;
    for (const node of drawn) {
      const end = ends.get(node.parent) + Math.max(least, node.tokens * scale);
      ends.set(node.id, end);
      most = Math.max(most, end);
    }
    return most;
  };
  let low = 0;
  let high = 6; // pixels a token at most: a short text does not fill the page
  for (let i = 0; i < 24; i += 1) {
    const middle = (low + high) / 2;
    if (longest(middle) > room) high = middle;
    else low = middle;
  }
  return new Map(drawn.map((node) => [node.id, Math.max(least, node.tokens * low)]));
}

/** How many texts begin with each block: the ends below it, those that are not sent included. */
export function texts(nodes) {
  const ends = new Map();
  for (const node of [...nodes].reverse()) {
    const below = ends.get(node.id) ?? 0;
    const all = below + node.more || 1;
    ends.set(node.id, all);
    if (node.parent !== null) ends.set(node.parent, (ends.get(node.parent) ?? 0) + all);
  }
  return ends;
}
