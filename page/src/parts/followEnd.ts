/** Keeps the end of a scrolling element in view while it grows, unless the reader has scrolled away. */
export function followEnd(element: HTMLElement): () => void {
  let following = true;
  const scroll = () => {
    if (following) element.scrollTop = element.scrollHeight;
  };
  const onscroll = () => {
    following = element.scrollHeight - element.scrollTop - element.clientHeight < 40;
  };
  const observer = new MutationObserver(scroll);
  observer.observe(element, { childList: true, characterData: true, subtree: true });
  element.addEventListener("scroll", onscroll);
  scroll();
  return () => {
    observer.disconnect();
    element.removeEventListener("scroll", onscroll);
  };
}
